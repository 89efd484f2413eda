"""Outputs are written aside and renamed: a target is either absent or whole."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


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
def new_directory(out: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place when the block ends without an error.

    A folder left by a process of this machine that was killed is removed by the next run.

    Args:
        out: the folder to make.
        needed_bytes: that will be written.

    Raises:
        ValueError: `out` exists and is not empty, cannot be written to, or its disk is full.
    """
    target = refuse_existing(out).resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        _refuse_lack_of_room(target.parent, needed_bytes)
        partial = target.parent / f"{_prefix(target)}{os.getpid()}"
        partial.mkdir()
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"out: {target.parent} is not a folder.") from error
    except OSError as error:
        raise ValueError(f"out: {target} cannot be written ({error.strerror}).") from error
    try:
        yield partial
        _synchronise(partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
        _wait_for_disk(target.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno not in _DISK_ERRORS:
            raise
        raise ValueError(
            f"out: {target} cannot be written ({error.strerror}); nothing was left there."
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-{socket.gethostname()}-"


def _remove_stale(target: Path) -> None:
    prefix = _prefix(target)
    for stale in target.parent.glob(f"{prefix}*"):
        process_id = stale.name.removeprefix(prefix)
        if process_id.isdigit() and not _is_running(int(process_id)):
            shutil.rmtree(stale)


def _refuse_lack_of_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ValueError(
            f"out: {needed_bytes / 1e9:.1f} GB are needed, but {folder} has {free / 1e9:.1f} GB "
            "left."
        )


def _synchronise(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() or path.is_dir():
            _wait_for_disk(path)
    _wait_for_disk(folder)


def _wait_for_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists()
