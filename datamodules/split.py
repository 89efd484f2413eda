"""Which records of which files make up training, validation and test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.dataset import RowOrder, Source
from datamodules.images import ImageFolder
from datamodules.permutation import Permutation
from datamodules.record_index import RecordIndex
from sample_loaders.conversation import IMAGE_PLACEHOLDER

SPLIT_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class RowSlice:
    """A stretch of a seeded permutation of a file's rows."""

    order: RowOrder
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, position: int, /) -> int:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        return self.order[self.start + position]


def as_list(paths: str | Sequence[str] | None) -> list[str]:
    """Turns one path, several, or none into a list."""
    if paths is None:
        return []
    return [paths] if isinstance(paths, str) else list(paths)


def open_sources(
    paths: Sequence[str],
    image_folder: str | Sequence[str] | None,
    argument: str,
    image_token: str = IMAGE_PLACEHOLDER,
) -> list[Source]:
    """Opens files with all of their rows.

    Args:
        paths: JSONL or JSON files.
        image_folder: One folder for all, one for each, or None for the folder of each file.
        argument: Name of the argument that gave the folders, for messages.
        image_token: What stands for an image in the text.

    Raises:
        ValueError: A file or folder does not exist or does not suit.
    """
    folders = _folders(paths, image_folder, argument)
    sources = []
    for path, folder in zip(paths, folders, strict=True):
        records = RecordIndex(path)
        sources.append(
            Source(
                name=path,
                records=records,
                rows=range(len(records)),
                images=ImageFolder(folder),
                image_token=image_token,
            )
        )
    return sources


def split_sources(
    sources: Sequence[Source], fractions: Sequence[float], seed: int
) -> dict[str, list[Source]]:
    """Splits the rows of every source into parts that share none.

    Rows are told apart, not images: two rows about one image may fall into different parts.

    Args:
        sources: Sources with all of their rows.
        fractions: Shares of training, validation and test, which add up to 1.
        seed: Chooses the rows; it belongs to the split alone, not to the order of training.

    Returns:
        Sources by part; a source with no row for validation or test is left out there.

    Raises:
        ValueError: The fractions do not suit, or leave a source no row for training.
    """
    check_fractions(fractions)
    parts: dict[str, list[Source]] = {part: [] for part in SPLIT_PARTS}
    for number, source in enumerate(sources):
        total = len(source)
        order = Permutation(total, seed, number)
        if round(total * fractions[0]) == 0:
            raise ValueError(
                f"split is {list(fractions)}, but leaves none of the {total} records of "
                f"{source.name} for training."
            )
        cuts = [round(total * sum(fractions[:end])) for end in range(len(SPLIT_PARTS))] + [total]
        for part, start, stop in zip(SPLIT_PARTS, cuts[:-1], cuts[1:], strict=True):
            if stop > start:
                rows = RowSlice(order, start, stop)
                parts[part].append(replace(source, rows=rows))
    return parts


def check_fractions(fractions: Sequence[float]) -> None:
    """Checks the shares of training, validation and test.

    Raises:
        ValueError: They are not three shares that add up to 1, with a share for training.
    """
    three = len(fractions) == len(SPLIT_PARTS)
    if not (three and min(fractions) >= 0 and math.isclose(sum(fractions), 1.0) and fractions[0]):
        raise ValueError(
            f"split is {list(fractions)}, but must be the shares of {', '.join(SPLIT_PARTS)}, "
            f"which add up to 1."
        )


def _folders(
    paths: Sequence[str], image_folder: str | Sequence[str] | None, argument: str
) -> list[str]:
    if image_folder is None:
        return [str(Path(path).parent) for path in paths]
    folders = [image_folder] * len(paths) if isinstance(image_folder, str) else list(image_folder)
    if len(folders) != len(paths):
        raise ValueError(
            f"{argument} has {len(folders)} folders for {len(paths)} files, but must have one for "
            f"each, or be one for all."
        )
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(f"{argument} names {folder}, but there is no such folder.")
    return folders
