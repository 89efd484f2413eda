"""Which files a source holds, listed in an order that is always the same."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def find_files(source: Path, suffixes: Sequence[str]) -> list[Path]:
    """Lists the files below a folder by the ends of their names; a file stands for itself.

    Hidden files and folders are passed over. Linked folders are followed once.

    Args:
        source: A folder, or one file.
        suffixes: Ends of file names, such as `.pkl` or `.jsonl.gz`, in lower case.

    Raises:
        ValueError: The source does not exist.
    """
    if source.is_file():
        return [source] if source.name.lower().endswith(tuple(suffixes)) else []
    if not source.is_dir():
        raise ValueError(f"The source {source} does not exist.")
    found = [path for path in _walk(source) if path.name.lower().endswith(tuple(suffixes))]
    return sorted(found, key=lambda path: path.relative_to(source).as_posix())


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def name_in_source(source: Path, path: Path) -> str:
    """Returns how keys name a file: its path below the source, or its own name."""
    return path.name if path == source else path.relative_to(source).as_posix()


def own_folder(source: Path) -> Path:
    """Returns the folder that images are looked for in when the user names none."""
    return source if source.is_dir() else source.parent
