"""Reading Megatron-Core's `torch_dist` checkpoints as lazy tensors, without a model.

The files say themselves what they hold, whatever layout has written them: every stored tensor has
its whole shape, and a list of chunks with their places in files. The archives are mapped, and only
the rows that are asked for are touched.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from converters.lazy import LazyTensor, MappedFile
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

    def open(self, chunk: _Chunk, dtype: torch.dtype) -> Tensor:
        """Return a chunk without a copy, where its archive holds nothing else.

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
            return file.tensor(dtype, chunk.sizes, self._payloads[key])
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"ckpt: {path} is missing or damaged ({' '.join(str(error).split())[:200]})."
            ) from error

    def prefetch(self, chunk: _Chunk, first: float, last: float) -> None:
        """Ask the system to fetch a part of an archive, from and to a fraction of it.

        Where equal layers share an archive, this is of all of them: no harm, as they come next.
        """
        file = self._files.get(chunk.place.relative_path)
        if file is not None:
            begin = chunk.place.offset + int(chunk.place.length * first)
            file.prefetch(begin, int(chunk.place.length * (last - first)))

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
        for chunk in self._chunks:
            offsets, sizes = self._place(chunk)
            low, high = max(start, offsets[0]), min(stop, offsets[0] + sizes[0])
            if low >= high:
                continue
            rows = self._data(chunk)[low - offsets[0] : high - offsets[0]]
            if (low, high) == (start, stop) and sizes[1:] == self.shape[1:]:
                return rows
            if result is None:
                result = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
            columns = (
                slice(offset, offset + size)
                for offset, size in zip(offsets[1:], sizes[1:], strict=True)
            )
            result[(slice(low - start, high - start), *columns)] = rows
            filled += rows.numel()
        if result is None or filled < result.numel():
            raise ValueError(
                f"ckpt: {self._folder.path} does not hold all of rows {start} to {stop} of "
                f"{self.name}; the checkpoint is damaged."
            )
        return result

    def prefetch(self, start: int, stop: int) -> None:
        """Name the parts of the archives that are about these rows."""
        for chunk in self._chunks:
            offsets, sizes = self._place(chunk)
            low, high = max(start, offsets[0]), min(stop, offsets[0] + sizes[0])
            if low < high:
                first, last = ((row - offsets[0]) / sizes[0] for row in (low, high))
                self._folder.prefetch(chunk, first, last)

    def _place(self, chunk: _Chunk) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return where a chunk begins in this tensor, and its shape; a scalar is one row."""
        first = 0 if self.layer is None else 1
        return chunk.offsets[first:] or (0,), chunk.sizes[first:] or (1,)

    def _data(self, chunk: _Chunk) -> Tensor:
        data = self._folder.open(chunk, self.dtype)
        if self.layer is not None:
            data = data[self.layer - chunk.offsets[0]]
        return data if data.ndim else data.reshape(1)


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
