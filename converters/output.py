"""Outputs are written aside and renamed: a target is either absent or whole."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_existing(out: str | Path, argument: str = "out") -> Path:
    """Return `out` as a path when nothing would be lost by writing there.

    Raises:
        ValueError: it is a file or a folder with something in it.
    """
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{argument}: {path} exists and is not empty; give a new or empty folder.")
    return path


@contextmanager
def new_directory(out: str | Path) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place when the block ends without an error.

    A folder left by a process of this machine that was killed is removed by the next run.

    Raises:
        ValueError: `out` exists and is not empty.
    """
    target = refuse_existing(out).resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"out: {target.parent} is not a folder.") from error
    prefix = f".{target.name}.partial-{socket.gethostname()}-"
    for stale in target.parent.glob(f"{prefix}*"):
        process_id = stale.name.removeprefix(prefix)
        if process_id.isdigit() and not _is_running(int(process_id)):
            shutil.rmtree(stale)
    partial = target.parent / f"{prefix}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        _synchronise(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        target.rmdir()
    partial.rename(target)


def _synchronise(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _is_running(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists()
