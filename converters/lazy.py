"""Tensors that are read a few rows at a time, and what is made of them.

A conversion never holds a model: what it writes is described as a tensor that is composed of other
tensors, down to the bytes of mapped files, and rows of it come into being when they are written.
"""

from __future__ import annotations

import mmap
import os
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Rows are read and written in pieces of about this size."""

_SMALL_RUN_BYTES = 64 * 2**10
"""Runs below it are joined in memory rather than copied one by one."""


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

    def pieces(self, start: int, stop: int) -> Iterator[Tensor | FileBytes]:
        """Yield what rows [start, stop) are made of, in order: bytes of files where they are.

        A tensor is valid until the next `release`.
        """
        yield self.read(start, stop)

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
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        # For reading only: of a map that may be written to, a system promises all the memory, or
        # refuses when the file is larger than that.
        self.buffer = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset: int) -> Tensor:
        """Return the tensor whose bytes begin at an offset, which will be read soon."""
        count = prod(shape)
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=offset)
        page, length = _pages(offset, count * dtype.itemsize)
        self.buffer.madvise(mmap.MADV_WILLNEED, page, length)
        return flat.view(tuple(shape))

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from an offset on, past the mapping.

        Raises:
            ValueError: the file has become shorter, or its disk failed.
        """
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
                if count == 0:
                    raise ValueError(f"{self._path} has been cut short while it was read.")
                done += count
        except OSError as error:
            raise ValueError(f"{self._path} cannot be read ({error.strerror}).") from error

    def drop(self, offset: int, length: int) -> None:
        """Tell the system that it need not keep these bytes in its cache."""
        os.posix_fadvise(self._descriptor, *_pages(offset, length), os.POSIX_FADV_DONTNEED)

    def release(self) -> None:
        """Give the pages back; reading them again brings them back."""
        self.buffer.madvise(mmap.MADV_DONTNEED)


def _pages(offset: int, length: int) -> tuple[int, int]:
    """Return the offset, and the length from there, of the pages that hold some bytes."""
    begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
    return begin, offset + length - begin


@dataclass(frozen=True)
class FileBytes:
    """Bytes of a file.

    Attributes:
        file: the file.
        offset: where they begin.
        nbytes: how many.
    """

    file: MappedFile = field(repr=False)
    offset: int
    nbytes: int


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

    def pieces(self, start: int, stop: int) -> Iterator[Tensor | FileBytes]:
        """Yield the place of the rows."""
        offset = self.offset + start * self._row_bytes
        yield FileBytes(self.file, offset, (stop - start) * self._row_bytes)

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

    def pieces(self, start: int, stop: int) -> Iterator[Tensor | FileBytes]:
        """Yield the pieces of each run, or all rows at once where the runs are small."""
        runs = list(self._between(start, stop))
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        if (stop - start) * row_bytes < len(runs) * _SMALL_RUN_BYTES:
            yield self.read(start, stop)
            return
        for tensor, first, last in runs:
            if tensor is None:
                yield torch.zeros((last - first, *self.shape[1:]), dtype=self.dtype)
            else:
                yield from tensor.pieces(first, last)

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
        if not torch.equal(byte_view(left.read(start, stop)), byte_view(right.read(start, stop))):
            return False
        release()
    return True


def byte_view(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes: uint8[n], of the same memory where it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8)
