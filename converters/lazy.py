"""Tensors that are read a few rows at a time, and what is made of them.

A conversion never holds a model: what it writes is described as a tensor that is composed of other
tensors, down to the bytes of mapped files, and rows of it come into being when they are written.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Rows are read and written in pieces of about this size."""


class LazyTensor(ABC):
    """A tensor by its shape and dtype, whose rows (along the first axis) can be read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """Length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop); not to be written to, and valid until the next `release`."""

    def prefetch(self, start: int, stop: int) -> None:
        """Ask the system to fetch rows [start, stop) from the disk while something else is done."""
        return

    def row_chunks(self) -> Iterator[tuple[int, int]]:
        """Yield the rows in ranges of about `CHUNK_BYTES`."""
        yield from row_ranges(self.rows, self.nbytes)

    def whole(self) -> Tensor:
        """Read all rows."""
        return self.read(0, self.rows).reshape(self.shape)


def row_ranges(rows: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows into as few equal ranges as chunks of `CHUNK_BYTES` allow.

    Args:
        rows: number of rows.
        nbytes: of all rows.
    """
    count = min(max(1, -(-nbytes // CHUNK_BYTES)), max(rows, 1))
    for number in range(count):
        yield rows * number // count, rows * (number + 1) // count


class MappedFile:
    """A file in memory; what has been read can be given back to the system.

    Args:
        path: the file, not empty.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # Private, so that torch sees a buffer that may be written to; nobody writes.
            self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset: int) -> Tensor:
        """Return the tensor whose bytes begin at an offset."""
        count = prod(shape)
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        flat = torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=offset)
        return flat.view(tuple(shape))

    def prefetch(self, offset: int, length: int) -> None:
        """Ask the system to read ahead."""
        page = offset // mmap.PAGESIZE * mmap.PAGESIZE
        end = min(offset + length, len(self.buffer))
        if page < end:  # a file that is cut short has less than it should
            self.buffer.madvise(mmap.MADV_WILLNEED, page, end - page)

    def release(self) -> None:
        """Give the pages back; reading them again brings them back."""
        self.buffer.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class MappedTensor(LazyTensor):
    """Contiguous bytes of a mapped file."""

    file: MappedFile = field(repr=False)
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) without a copy."""
        shape = (stop - start, *self.shape[1:])
        return self.file.tensor(self.dtype, shape, self.offset + start * self._row_bytes)

    def prefetch(self, start: int, stop: int) -> None:
        """Tell the system the place."""
        length = (stop - start) * self._row_bytes
        if length > 0:
            self.file.prefetch(self.offset + start * self._row_bytes, length)

    @property
    def _row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class HeldTensor(LazyTensor):
    """A tensor in memory."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the tensor."""
        return self.tensor.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) without a copy."""
        return self.tensor[start:stop] if self.tensor.ndim else self.tensor.reshape(1)


@dataclass(frozen=True)
class CastTensor(LazyTensor):
    """The same numbers in another floating-point type."""

    source: LazyTensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the source."""
        return self.source.shape

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop), rounded."""
        return self.source.read(start, stop).to(self.dtype)

    def prefetch(self, start: int, stop: int) -> None:
        """Pass on to the source."""
        self.source.prefetch(start, stop)


def cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    """Return the tensor in a type: itself where it has it."""
    return tensor if tensor.dtype == dtype else CastTensor(tensor, dtype)


@dataclass(frozen=True)
class Stacked(LazyTensor):
    """Runs of rows of several tensors, one after the other; None stands for zeros.

    Attributes:
        runs: (tensor or None, first row, number of rows).
        shape: of the whole.
        dtype: of the whole.
    """

    runs: tuple[tuple[LazyTensor | None, int, int], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop); a copy only where they are of several runs."""
        row_shape = self.shape[1:]
        parts = [
            torch.zeros((last - first, *row_shape), dtype=self.dtype)
            if tensor is None
            else tensor.read(first, last)
            for tensor, first, last in self._between(start, stop)
        ]
        if not parts:
            return torch.empty((0, *row_shape), dtype=self.dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def prefetch(self, start: int, stop: int) -> None:
        """Pass on to the tensors."""
        for tensor, first, last in self._between(start, stop):
            if tensor is not None:
                tensor.prefetch(first, last)

    def _between(self, start: int, stop: int) -> Iterator[tuple[LazyTensor | None, int, int]]:
        """Yield (tensor, first row, row behind the last) of what rows [start, stop) are made of."""
        end = 0
        for tensor, first, rows in self.runs:
            begin, end = end, end + rows
            low, high = max(start, begin), min(stop, end)
            if low < high:
                yield tensor, first + low - begin, first + high - begin


def same_bits(
    left: LazyTensor, right: LazyTensor, release: Callable[[], None] = lambda: None
) -> bool:
    """Return whether dtype, shape and every bit agree (NaN equals the same NaN).

    Args:
        left: a tensor.
        right: another.
        release: gives back the memory of what was read; called now and then.
    """
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    for start, stop in left.row_chunks():
        if not torch.equal(_bits(left.read(start, stop)), _bits(right.read(start, stop))):
            return False
        release()
    return True


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
