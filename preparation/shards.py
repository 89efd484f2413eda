"""Tar shards whose bytes depend on nothing but their samples."""

import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_END = bytes(2 * tarfile.BLOCKSIZE)
_COPY_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sample lies.

    Attributes:
        shard: Number of the shard in its unit.
        offset: Where its first header starts.
        size: Bytes of all its members.
    """

    shard: int
    offset: int
    size: int


def shard_name(unit: str, shard: int) -> str:
    """Names a shard."""
    return f"{unit}-{shard:03d}.tar"


class ShardWriter:
    """Writes the shards of a unit.

    Args:
        folder: Where to.
        unit: Starts their names.
        shard_bytes: A shard is ended before a sample that would make it larger.
        most_samples: A shard is ended after so many samples; None sets no bound.
    """

    def __init__(self, folder: Path, unit: str, shard_bytes: int, most_samples: int | None) -> None:
        self._folder = folder
        self._unit = unit
        self._shard_bytes = shard_bytes
        self._most_samples = most_samples
        self._stream: BinaryIO | None = None
        self._size = 0
        self._samples = 0
        self.shards = 0

    def write(self, key: str, parts: Iterable[tuple[str, bytes]]) -> Place:
        """Writes a sample.

        Args:
            key: Its name, without a dot.
            parts: Its files by extension.
        """
        blocks = [_member(f"{key}.{extension}", data) for extension, data in parts]
        size = sum(map(len, blocks))
        if self._stream is not None and (
            self._size + size > self._shard_bytes or self._samples == self._most_samples
        ):
            self.close()
        if self._stream is None:
            path = self._folder / shard_name(self._unit, self.shards)
            self._stream = path.open("wb", buffering=1 << 20)
            self._size = self._samples = 0
            self.shards += 1
        self._stream.writelines(blocks)
        place = Place(shard=self.shards - 1, offset=self._size, size=size)
        self._size += size
        self._samples += 1
        return place

    def close(self) -> None:
        """Ends the shard that is being written."""
        if self._stream is not None:
            _finish(self._stream, self._size)
            self._stream.close()
            self._stream = None


def copy_samples(source: Path, target: Path, places: Sequence[tuple[int, int]]) -> None:
    """Writes a shard of some samples of another.

    Args:
        source: The shard to read.
        target: The shard to write.
        places: Offset and size of each sample that stays.
    """
    with source.open("rb") as reading, target.open("wb", buffering=1 << 20) as writing:
        total = 0
        for offset, size in _merged(places):
            reading.seek(offset)
            total += size
            while size:
                block = reading.read(min(size, _COPY_BYTES))
                assert block, f"{source} is shorter than its own list says"
                writing.write(block)
                size -= len(block)
        _finish(writing, total)


def synchronise(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _finish(stream: BinaryIO, size: int) -> None:
    end = size + len(_END)
    stream.write(_END + bytes(-end % tarfile.RECORDSIZE))
    stream.flush()
    os.fsync(stream.fileno())


def _merged(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for offset, size in places:
        if merged and sum(merged[-1]) == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + size)
        else:
            merged.append((offset, size))
    return merged
