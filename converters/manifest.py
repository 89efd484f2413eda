"""SHA-256 sums of the files of a folder, in the form of `sha256sum`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

MANIFEST_NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_manifest(folder: Path, known: Mapping[Path, str]) -> None:
    """Write the sums of all files below a folder.

    Args:
        folder: without a manifest.
        known: sums that need not be computed, by path.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{known.get(path) or sha256_of(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    ]
    (folder / MANIFEST_NAME).write_text("".join(lines), encoding="utf-8")


def damaged_files(folder: Path) -> list[str] | None:
    """Compare a folder with its manifest.

    Returns:
        What differs, a line for each file ("missing" or "changed"); None without a manifest.

    Raises:
        ValueError: the manifest itself is damaged.
    """
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return None
    different = []
    for line in manifest.read_text(encoding="utf-8").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{manifest} is damaged: it has the line {line[:80]!r}.")
        path = folder / match[2]
        if not path.is_file():
            different.append(f"{path} is missing")
        elif sha256_of(path) != match[1]:
            different.append(f"{path} has changed")
    return different


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
