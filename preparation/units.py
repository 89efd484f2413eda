"""Which pieces of a source make which shards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preparation.source import Piece

# Headers and padding of a tar take more room than the files alone.
_FILLED_SHARE = 0.9
# Bounds what is lost when a process is killed, where a reader knows no sizes.
_MOST_PIECES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Consecutive pieces that one process reads and writes to shards of their own.

    Attributes:
        number: Counts the units of a source.
        pieces: What is read.
    """

    number: int
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        """Starts the names of its shards."""
        return f"{self.number:06d}"

    @property
    def size_bytes(self) -> int:
        """About how much is read."""
        return sum(piece.size_bytes for piece in self.pieces)


def group_pieces(pieces: Iterable[Piece], shard_bytes: int) -> list[Unit]:
    """Groups pieces so that a unit fills about one shard; a larger piece is a unit by itself.

    Args:
        pieces: In the order of the source.
        shard_bytes: The size of a shard.
    """
    target = shard_bytes * _FILLED_SHARE
    groups: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        full = groups and (size + piece.size_bytes > target or len(groups[-1]) == _MOST_PIECES)
        if not groups or full:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.size_bytes
    return [Unit(number=number, pieces=tuple(group)) for number, group in enumerate(groups)]


def describe_units(units: Sequence[Unit], source: Path) -> list[list[list[Any]]]:
    """Describes units so that a change of the source shows.

    Returns:
        For each unit its pieces: file, first, stop, the file's size and time of change.
    """
    return [[_describe_piece(piece, source) for piece in unit.pieces] for unit in units]


def piece_name(piece: Piece, source: Path) -> str:
    """Names the file of a piece as seen from the source."""
    path = piece.path
    return str(path.relative_to(source)) if path != source and source in path.parents else path.name


def _describe_piece(piece: Piece, source: Path) -> list[Any]:
    state = piece.path.stat()
    name = piece_name(piece, source)
    return [name, piece.first, piece.stop, state.st_size, state.st_mtime_ns]
