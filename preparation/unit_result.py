"""What a finished unit leaves behind beside its shards, until all units are finished."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preparation.shown import Shown

ROW = np.dtype(
    [
        ("content", "<u8", 2),  # hash of the text and of the images' files
        ("offset", "<u8"),
        ("size", "<u8"),
        ("shard", "<u2"),
        ("piece", "<u2"),
        ("images", "<u2"),
        ("licence", "<u2"),
        ("characters", "<u4"),
        ("tokens", "<i4"),  # -1 where they are not counted
    ]
)
IMAGE = np.dtype(
    [
        ("hash", "<u8"),
        ("is_hashed", "?"),
        ("bytes", "<u8"),
        ("width", "<u4"),
        ("height", "<u4"),
    ]
)
_ROWS, _IMAGES, _KEYS, _REJECTED, _SUMMARY = (
    "rows.npy", "images.npy", "keys.jsonl", "rejected.jsonl", "summary.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSummary:
    """Counts of a unit.

    Attributes:
        shards: How many it wrote.
        licences: Names that the rows count through.
        pieces: For each piece how many records were read, and how many rejected by reason.
        shown: Samples for the report.
    """

    shards: int
    licences: list[str]
    pieces: list[dict[str, Any]]
    shown: list[Shown]


def write_result(
    folder: Path,
    summary: UnitSummary,
    rows: list[tuple[Any, ...]],
    images: list[tuple[Any, ...]],
    keys: list[str],
) -> None:
    """Writes what is known about the accepted samples of a unit."""
    np.save(folder / _ROWS, np.array(rows, dtype=ROW))
    np.save(folder / _IMAGES, np.array(images, dtype=IMAGE))
    with (folder / _KEYS).open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(key) + "\n" for key in keys)
    (folder / _SUMMARY).write_text(json.dumps(asdict(summary)), encoding="utf-8")


def rejected_file(folder: Path) -> Path:
    """Where the rejected records of a unit are listed."""
    return folder / _REJECTED


def rejected_line(key: str, reason: str, message: str) -> str:
    """Writes an entry of a list of rejected records."""
    entry: Mapping[str, str] = {"key": key, "reason": reason, "message": message}
    # Keys and messages quote sources, which may hold characters that are no Unicode.
    return json.dumps(entry, ensure_ascii=True) + "\n"


class UnitResult:
    """Reads what a finished unit left behind.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self) -> np.ndarray:
        """Accepted samples in the order of the shards."""
        return np.load(self.folder / _ROWS)

    def images(self) -> np.ndarray:
        """Their images."""
        return np.load(self.folder / _IMAGES)

    def keys(self) -> list[str]:
        """Their names in the source."""
        with (self.folder / _KEYS).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def rejected(self) -> Iterator[str]:
        """The lines of the list of rejected records."""
        with rejected_file(self.folder).open(encoding="utf-8") as lines:
            yield from lines

    def summary(self) -> UnitSummary:
        """Its counts."""
        content = json.loads((self.folder / _SUMMARY).read_text(encoding="utf-8"))
        shown = [Shown(**entry) for entry in content.pop("shown")]
        return UnitSummary(shown=shown, **content)
