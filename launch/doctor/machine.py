"""Disk, memory, shared memory, open files, and the clock."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from launch.doctor.finding import Finding

_GIB = 2**30
_ENOUGH_DISK_GIB, _LITTLE_DISK_GIB = 200, 20
_ENOUGH_INODES = 100_000
_ENOUGH_SHARED_GIB, _LITTLE_SHARED_GIB = 8, 1
_ENOUGH_OPEN_FILES = 1024
_SLOW_DISK_MB_PER_SECOND = 200.0
_LARGEST_SKEW_SECONDS = 2.0
_PROBE_BYTES = 256 * 2**20


def check_machine(folder: Path) -> list[Finding]:
    """Look at this machine, and at the file system that a folder of runs is on."""
    shared = Path("/dev/shm")
    usage, inodes = shutil.disk_usage(folder), os.statvfs(folder)
    findings = [
        check_free_disk(folder, usage.free),
        check_inodes(folder, inodes.f_favail, inodes.f_files),
        check_disk_speed(folder, write_speed(folder)),
        check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ]
    if shared.is_dir():
        findings.append(check_shared_memory(shutil.disk_usage(shared).total))
    return findings


def check_free_disk(folder: Path, free: int) -> Finding:
    """Judge free bytes: a checkpoint of the 15B model with its optimizer takes 200 GB."""
    found = f"{free / _GIB:.0f} GiB"
    if free < _LITTLE_DISK_GIB * _GIB:
        return Finding(f"free disk of {folder}", "bad", found, "free space, or train elsewhere")
    if free < _ENOUGH_DISK_GIB * _GIB:
        return Finding(
            f"free disk of {folder}", "warn", found, "checkpoints of a large model need more"
        )
    return Finding(f"free disk of {folder}", "ok", found)


def check_inodes(folder: Path, free: int, total: int) -> Finding:
    """Judge free inodes; file systems that have no such number say 0 of 0."""
    name = f"free inodes of {folder}"
    if total == 0 or free >= _ENOUGH_INODES:
        return Finding(name, "ok", "unlimited" if total == 0 else f"{free:,}")
    return Finding(name, "warn", f"{free:,}", "many small files will not fit; use shards")


def check_disk_speed(folder: Path, bytes_per_second: float) -> Finding:
    """Judge how fast a file gets to the disk."""
    speed = bytes_per_second / 1e6
    name = f"write speed of {folder}"
    if speed < _SLOW_DISK_MB_PER_SECOND:
        return Finding(name, "warn", f"{speed:.0f} MB/s", "checkpoints will take long")
    return Finding(name, "ok", f"{speed:.0f} MB/s")


def check_open_files(limit: int) -> Finding:
    """Judge the limit of open files: a rank with its groups, readers and writers has hundreds."""
    if limit == resource.RLIM_INFINITY or limit >= _ENOUGH_OPEN_FILES:
        found = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
        return Finding("open files", "ok", found)
    return Finding("open files", "bad", f"{limit:,}", f"ulimit -n {4 * _ENOUGH_OPEN_FILES}")


def check_shared_memory(size: int) -> Finding:
    """Judge /dev/shm, through which readers hand over batches."""
    found = f"{size / _GIB:.1f} GiB"
    advice = "start the container with more (--shm-size, or --ipc=host)"
    if size < _LITTLE_SHARED_GIB * _GIB:
        return Finding("shared memory", "bad", found, advice)
    if size < _ENOUGH_SHARED_GIB * _GIB:
        return Finding("shared memory", "warn", found, advice)
    return Finding("shared memory", "ok", found)


def check_clocks(seconds_by_node: Mapping[str, float]) -> Finding:
    """Judge the clocks of nodes that were read at the same moment."""
    middle = statistics.median(seconds_by_node.values())
    skews = {node: abs(seconds - middle) for node, seconds in seconds_by_node.items()}
    node = max(skews, key=lambda name: skews[name])
    found = f"{skews[node]:.2f} s at most"
    if skews[node] > _LARGEST_SKEW_SECONDS:
        return Finding("clocks", "warn", found, f"the clock of {node} is off; start its NTP")
    return Finding("clocks", "ok", found)


def write_speed(folder: Path, nbytes: int = _PROBE_BYTES) -> float:
    """Return bytes per second of a new file that is written and synced, then removed.

    Raises:
        ValueError: the folder cannot be written to.
    """
    path = folder / f".doctor_{os.getpid()}"
    data = os.urandom(2**20)
    try:
        begun = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(nbytes // len(data)):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return nbytes / (time.perf_counter() - begun)
    except OSError as error:
        raise ValueError(f"dir: {folder} cannot be written to ({error.strerror}).") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
