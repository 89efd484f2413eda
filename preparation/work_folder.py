"""What a run leaves in the output folder while it is not finished, and who may work there."""

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preparation.shards import synchronise
from preparation.unit_worker import PARTIAL

# Hidden, so that tools that look for shards do not find those that are not finished.
WORK_FOLDER = ".prepare"
# Written last of all: a folder that has it is finished.
REPORT_FILE = "report.json"
_REQUEST, _LOCK, _UNITS = "request.json", "lock", "units"
# Some network file systems know no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class WorkFolder:
    """The state of a run on the disk.

    Args:
        out: The output folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / WORK_FOLDER
        self.units = self.path / _UNITS

    def finished_report(self, what_counts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the report of a folder that is finished, or None for one that is not.

        Raises:
            ValueError: It was made with other options.
        """
        file = self.out / REPORT_FILE
        if not file.is_file():
            return None
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            made_with = report["request"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"out: {file} is not a report of prepare; give a new or empty folder."
            ) from error
        _check_same(made_with, what_counts, self.out)
        return report

    def open(self, what_counts: Mapping[str, Any], units: list[list[list[Any]]]) -> None:
        """Makes the folder, or takes one up that a run with the same request has left.

        Raises:
            ValueError: There is something else, or the request or the source was another.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out: {self.out} is a file; give a new or empty folder.")
        request = self.path / _REQUEST
        if not request.is_file() and self.out.is_dir():
            foreign = sorted(set(os.listdir(self.out)) - {WORK_FOLDER})
            if foreign:
                raise ValueError(
                    f"out: {self.out} exists and holds {foreign[0]}, which prepare did not write; "
                    f"give a new or empty folder."
                )
        try:
            self.units.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise ValueError(f"out: {self.out} cannot be written to: {error.strerror}.") from error
        content = {"request": dict(what_counts), "units": units}
        if not request.is_file():
            replace_file(request, json.dumps(content).encode("ascii"), self.path)
        saved = json.loads(request.read_text(encoding="utf-8"))
        _check_same(saved["request"], what_counts, self.out)
        if saved["units"] != json.loads(json.dumps(units)):
            raise ValueError(
                f"source: its files are not those that {self.out} was begun with; give a new "
                f"folder."
            )

    @contextmanager
    def lock(self, exclusive: bool) -> Iterator[None]:
        """Keeps others from working in the folder at the same time.

        Args:
            exclusive: Nobody else may work here; otherwise other tasks may.

        Raises:
            ValueError: Somebody does.
        """
        with (self.path / _LOCK).open("a+") as stream:
            kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            try:
                # Of the process and not of the file, so that no child of a killed run keeps it.
                fcntl.lockf(stream, kind | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise ValueError(f"out: another prepare is at work in {self.out}.") from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            yield

    def finished_units(self) -> set[str]:
        """Lists the units that are done."""
        return {name for name in os.listdir(self.units) if PARTIAL not in name}

    def remove_partial_units(self, names: set[str]) -> None:
        """Removes what a killed run left of units.

        Args:
            names: Units that no other process works on.
        """
        for name in os.listdir(self.units):
            unit, mark, _ = name.partition(PARTIAL)
            if mark and unit in names:
                shutil.rmtree(self.units / name)

    def remove(self) -> None:
        """Removes the folder when all is done."""
        shutil.rmtree(self.path, ignore_errors=True)


def replace_file(path: Path, content: bytes, aside: Path) -> None:
    """Writes a file in another folder, which goes when all is done, and renames it."""
    partial = aside / f"{path.name}{PARTIAL}{uuid.uuid4().hex}"
    partial.write_bytes(content)
    synchronise(partial)
    os.replace(partial, path)


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    now = json.loads(json.dumps(now))
    for name in now:
        if before.get(name) != now[name]:
            old, new = _first_difference(before.get(name), now[name])
            raise ValueError(
                f"{name}: {out} was begun with {old}, and now it is {new}; give the same, or "
                f"another folder."
            )


def _first_difference(old: Any, new: Any) -> tuple[Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in new:
            if old.get(name) != new[name]:
                return f"{name}={old.get(name)}", f"{name}={new[name]}"
    return old, new
