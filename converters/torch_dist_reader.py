"""Reading Megatron-Core's `torch_dist` checkpoints as lazy tensors, without a model.

The files say themselves what they hold, whatever layout has written them: every stored tensor has
its whole shape, and a list of chunks with their places in files. The archives are mapped, and only
the rows that are asked for are touched.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from converters.lazy import FileBytes, LazyTensor, MappedFile
from converters.mapping import shortened
from converters.rows import ConversionError
from converters.torch_dist_writer import METADATA_NAME, Place

_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class _Chunk:
    """An archive with a part of a stored tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class _Part:
    """Where a chunk and a range of rows meet.

    Attributes:
        chunk: the chunk.
        offsets: where it begins in the tensor.
        sizes: its shape there.
        low: the first of the rows that it has.
        high: the row behind the last.
        whole_rows: whether it has all of them, or some columns.
    """

    chunk: _Chunk
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    low: int
    high: int
    whole_rows: bool


class CheckpointFolder:
    """The tensors of a checkpoint.

    Args:
        path: the folder `weights`.
        prefix: of the model's names; others (the optimizer's) are left alone.

    Raises:
        ValueError: `.metadata` is missing or damaged.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        self.path, self.prefix = path, prefix
        self._files: dict[str, MappedFile] = {}
        self._payloads: dict[tuple[str, int], int] = {}
        try:
            self._metadata: Metadata = pickle.loads((path / METADATA_NAME).read_bytes())
            assert isinstance(self._metadata, Metadata)
        except (OSError, ValueError, LookupError, AttributeError, EOFError, AssertionError,
                pickle.UnpicklingError) as error:  # fmt: skip
            raise ValueError(
                f"ckpt: {path / METADATA_NAME} cannot be read ({error!r}); the checkpoint is "
                "damaged."
            ) from error

    @cached_property
    def stored(self) -> dict[str, TensorStorageMetadata]:
        """The model's stored tensors by their names without the prefix."""
        return {
            key.removeprefix(self.prefix): value
            for key, value in self._metadata.state_dict_metadata.items()
            if key.startswith(self.prefix) and isinstance(value, TensorStorageMetadata)
        }

    def find(self, name: str) -> StoredTensor | None:
        """Find a tensor by its name in the model; None where it is not stored.

        Equal layers are stored as one tensor, whose first axis counts them.
        """
        if name in self.stored:
            return StoredTensor(self, name)
        match = _LAYER.search(name)
        if match is None:
            return None
        stacked, layer = _LAYER.sub(".layers.", name, count=1), int(match[1])
        if stacked not in self.stored or layer >= self.stored[stacked].size[0]:
            return None
        return StoredTensor(self, stacked, layer)

    def tensors(self, names: Iterable[str], sentence: str | None = None) -> dict[str, LazyTensor]:
        """Find the tensors of a model by their names there.

        Args:
            names: all that there should be.
            sentence: what to say when it is not so.

        Raises:
            ConversionError: a name is not stored, or something is stored that has no name here.
        """
        found: dict[str, LazyTensor] = {}
        different: list[str] = []
        layers: dict[str, int] = {}
        for name in names:
            tensor = self.find(name)
            if tensor is None:
                different.append(f"{name} is missing")
            else:
                found[name] = tensor
                layers[tensor.name] = layers.get(tensor.name, 0) + (tensor.layer is not None)
        for key, value in self.stored.items():
            if key not in layers:
                different.append(f"{key} is surplus")
            elif layers[key] and layers[key] < value.size[0]:
                different.append(f"{key} has {value.size[0]} layers, not {layers[key]}")
        if different:
            raise ConversionError(
                (
                    sentence
                    or f"ckpt: the weights of {self.path.parent} do not fit its "
                    "context/assets/config.json"
                )
                + f": {shortened(different)}."
            )
        return found

    def chunks(self, name: str) -> list[_Chunk]:
        """Return the chunks of a stored tensor."""
        return self._chunks.get(f"{self.prefix}{name}", [])

    def locate(self, chunk: _Chunk, dtype: torch.dtype) -> FileBytes:
        """Return where the numbers of a chunk are.

        Raises:
            ValueError: the file is missing, cut short or damaged.
        """
        place = chunk.place
        path = self.path / place.relative_path
        try:
            if place.relative_path not in self._files:
                self._files[place.relative_path] = MappedFile(path)
            file = self._files[place.relative_path]
            key = (place.relative_path, place.offset)
            if key not in self._payloads:
                self._payloads[key] = _payload(path, place, dtype, chunk.sizes)
            return FileBytes(file, self._payloads[key], prod(chunk.sizes) * dtype.itemsize)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"ckpt: {path} is missing or damaged ({' '.join(str(error).split())[:200]})."
            ) from error

    def release(self) -> None:
        """Give back the memory of what has been read."""
        for file in self._files.values():
            file.release()

    @cached_property
    def _chunks(self) -> dict[str, list[_Chunk]]:
        sizes = {
            (key, tuple(chunk.offsets)): tuple(chunk.sizes)
            for key, value in self._metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
            for chunk in value.chunks
        }
        chunks: dict[str, list[_Chunk]] = {}
        for index, place in self._metadata.storage_data.items():
            if index.offset is not None:
                offsets = tuple(index.offset)
                chunk = _Chunk(offsets, sizes[index.fqn, offsets], place)
                chunks.setdefault(index.fqn, []).append(chunk)
        return chunks


class StoredTensor(LazyTensor):
    """A tensor of a checkpoint, put together from its chunks.

    Args:
        folder: of the checkpoint.
        name: of the stored tensor.
        layer: place on the first axis, where equal layers are stacked; None for all of it.
    """

    def __init__(self, folder: CheckpointFolder, name: str, layer: int | None = None) -> None:
        described = folder.stored[name]
        self.dtype = described.properties.dtype
        self.shape = tuple(described.size)[0 if layer is None else 1 :]
        self._folder, self.name, self.layer = folder, name, layer

    @cached_property
    def _chunks(self) -> list[_Chunk]:
        chunks = self._folder.chunks(self.name)
        if self.layer is None:
            return chunks
        return [
            chunk
            for chunk in chunks
            if chunk.offsets[0] <= self.layer < chunk.offsets[0] + chunk.sizes[0]
        ]

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop); a copy only where they lie in several chunks.

        Raises:
            ValueError: a file is missing or damaged, or a part of the tensor is nowhere.
        """
        result: Tensor | None = None
        filled = 0
        for part in self._parts(start, stop):
            offsets, low, high = part.offsets, part.low, part.high
            place = self._place(part)
            rows = place.file.tensor(self.dtype, (high - low, *part.sizes[1:]), place.offset)
            if (low, high) == (start, stop) and part.whole_rows:
                return rows
            if result is None:
                result = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
            columns = (
                slice(offset, offset + size)
                for offset, size in zip(offsets[1:], part.sizes[1:], strict=True)
            )
            result[(slice(low - start, high - start), *columns)] = rows
            filled += rows.numel()
        if result is None or filled < result.numel():
            raise ValueError(
                f"ckpt: {self._folder.path} does not hold all of rows {start} to {stop} of "
                f"{self.name}; the checkpoint is damaged."
            )
        return result

    def pieces(self, start: int, stop: int) -> Iterator[Tensor | FileBytes]:
        """Yield the places of the rows, where each chunk has whole rows; else the rows.

        Raises:
            ValueError: a file is missing or damaged, or a part of the tensor is nowhere.
        """
        parts = sorted(
            (part for part in self._parts(start, stop) if part.whole_rows), key=lambda one: one.low
        )
        if [*(part.low for part in parts), stop] != [start, *(part.high for part in parts)]:
            yield self.read(start, stop)
            return
        yield from map(self._place, parts)

    def _parts(self, start: int, stop: int) -> Iterator[_Part]:
        """Yield the chunks that have some of the rows [start, stop); a scalar is one row."""
        first_axis = 0 if self.layer is None else 1
        for chunk in self._chunks:
            offsets = chunk.offsets[first_axis:] or (0,)
            sizes = chunk.sizes[first_axis:] or (1,)
            low, high = max(start, offsets[0]), min(stop, offsets[0] + sizes[0])
            if low < high:
                yield _Part(chunk, offsets, sizes, low, high, sizes[1:] == self.shape[1:])

    def _place(self, part: _Part) -> FileBytes:
        """Return where the rows of a part are, with those of its columns that the chunk has."""
        numbers = self._folder.locate(part.chunk, self.dtype)
        row_bytes = prod(part.sizes[1:]) * self.dtype.itemsize
        layers_before = 0 if self.layer is None else self.layer - part.chunk.offsets[0]
        rows_before = layers_before * part.sizes[0] + part.low - part.offsets[0]
        return FileBytes(
            numbers.file,
            numbers.offset + rows_before * row_bytes,
            (part.high - part.low) * row_bytes,
        )


def _payload(path: Path, place: Place, dtype: torch.dtype, sizes: tuple[int, ...]) -> int:
    """Return where the numbers of an archive begin in its file.

    Raises:
        ValueError: it holds another tensor than described.
    """
    with path.open("rb") as file, FakeTensorMode():
        view = _create_file_view(file, place.offset, place.length)
        tensor = torch.load(view, map_location="cpu", weights_only=True)
        storage: Any = tensor.untyped_storage()
        if tensor.dtype != dtype or tuple(tensor.shape) != sizes or not tensor.is_contiguous():
            raise ValueError(
                f"the archive at {place.offset} holds {list(tensor.shape)} {tensor.dtype}, not "
                f"{list(sizes)} {dtype}"
            )
        begin = storage._checkpoint_offset + tensor.storage_offset() * dtype.itemsize
    if place.offset + begin + tensor.nbytes > path.stat().st_size:
        raise ValueError(f"the archive at {place.offset} is cut short")
    return place.offset + begin
