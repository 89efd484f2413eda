"""A disk that a test can fill."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def mounted(folder, nbytes):
    """A new folder that is a disk of its own; where nobody may mount one the test is skipped."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, spare_bytes):
    """Let a file grow so that so many bytes are left, or fewer where others write; return it."""
    path = folder / "filler"
    status = os.statvfs(folder)
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - spare_bytes)))
    return path
