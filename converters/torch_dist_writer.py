"""Writing Megatron-Core's `torch_dist` checkpoints from lazy tensors, without a model.

A folder has `.metadata` (names, shapes, and where each chunk lies), `*.distcp` files with one
`torch.save` archive behind the other, `common.pt` and `metadata.json`. These are the files of
PyTorch's Distributed Checkpoint, and Megatron-Core's own loader reads them for any layout.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from converters.hashed_file import HashedFile
from converters.lazy import LazyTensor, row_ranges

METADATA_NAME = ".metadata"
COMMON_NAME = "common.pt"
CONFIG_NAME = "metadata.json"
_CONFIG = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
Place: TypeAlias = _StorageInfo
"""Where an archive lies."""


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """Some rows of a model's tensor and their place in a stored tensor.

    Attributes:
        key: name of the stored tensor.
        global_shape: of the stored tensor; equal layers are stacked along a first axis.
        offset: where the rows begin.
        rows: how many.
        row_shape: shape of one row.
        prepended_axes: how many first axes the model's tensor does not have.
    """

    key: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    rows: int
    row_shape: tuple[int, ...]
    prepended_axes: int


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One archive of a checkpoint.

    Attributes:
        index: its name, and its place in the stored tensor.
        sizes: shape of the chunk; empty for bytes.
        source: rows of it are the chunk, or the bytes themselves.
        start: first of these rows.
        stop: the row behind the last.
    """

    index: MetadataIndex
    sizes: tuple[int, ...]
    source: LazyTensor | bytes
    start: int = 0
    stop: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the contents."""
        if isinstance(self.source, bytes):
            return len(self.source)
        return self.source.nbytes * (self.stop - self.start) // max(self.source.rows, 1)

    def write(self, file: HashedFile, file_name: str) -> Place:
        """Append the archive to a file and return where it is."""
        offset = file.tell()
        if isinstance(self.source, bytes):
            file.write(self.source)
        else:
            self._save(self.source, file)
        return Place(file_name, offset, file.tell() - offset)

    def _save(self, source: LazyTensor, file: HashedFile) -> None:
        # `torch.save` writes a tensor of this shape whose memory nobody touches; where it hands its
        # numbers over, those of the source are written.
        placeholder = torch.empty(self.sizes, dtype=source.dtype)
        append = partial(file.append, source, self.start, self.stop)
        computes = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)  # it would read all of the placeholder
        try:
            torch.save(placeholder, _Substitution(file, placeholder, append))  # type: ignore[arg-type]
        finally:
            torch.serialization.set_crc32_options(computes)


class _Substitution:
    """A file for `torch.save`, in which other bytes take the place of a tensor's."""

    def __init__(self, file: HashedFile, replaced: Tensor, append: Callable[[], None]) -> None:
        self._file, self._replaced, self._append = file, replaced, append

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes, or what takes their place."""
        if np.frombuffer(data, dtype=np.uint8).ctypes.data != self._replaced.data_ptr():
            return self._file.write(data)
        before = self._file.tell()
        self._append()
        assert self._file.tell() - before == len(data), "a tensor has other rows than its shape"
        return len(data)

    def flush(self) -> None:
        """Do nothing: the file hands over what it holds when it is closed."""


def plan_archives(
    tensors: Mapping[str, LazyTensor],
    parts: Mapping[str, Sequence[StoredPart]],
    objects: Mapping[str, bytes],
) -> tuple[Metadata, list[Archive]]:
    """Cut a model into archives.

    Args:
        tensors: by their names in the model.
        parts: where each is stored, by the same names.
        objects: bytes by their names in the checkpoint.

    Returns:
        The description of the checkpoint, without the places of the archives, and the archives.
    """
    assert tensors.keys() == parts.keys(), tensors.keys() ^ parts.keys()
    stored: dict[str, Any] = {}
    archives: list[Archive] = []
    for name, tensor in tensors.items():
        first = 0
        for part in parts[name]:
            described = stored.setdefault(part.key, _describe(part, tensor))
            archives += _archives_of(part, tensor, first, described.chunks)
            first += part.rows
        assert first == tensor.rows, name
    # What Megatron-Core remembers of each tensor: nothing, where none is flattened.
    remembered: dict[str, dict] = {key: {} for key in stored}
    for key, content in objects.items():
        stored[key] = BytesStorageMetadata()
        archives.append(Archive(index=MetadataIndex(key), sizes=(), source=content))
    metadata = Metadata(state_dict_metadata=stored)
    metadata.mcore_data = remembered  # type: ignore[attr-defined]
    return metadata, archives


def write_description(
    folder: Path, metadata: Metadata, places: Mapping[MetadataIndex, Place]
) -> None:
    """Write the small files of a checkpoint; `metadata.json`, which makes it whole, comes last."""
    metadata.storage_data = dict(places)
    metadata.storage_meta = StorageMeta()
    (folder / METADATA_NAME).write_bytes(pickle.dumps(metadata))
    torch.save({"content_metadata": {}}, folder / COMMON_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(_CONFIG), encoding="utf-8")


def _describe(part: StoredPart, tensor: LazyTensor) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=tensor.dtype),
        size=torch.Size(part.global_shape),
        chunks=[],
    )


def _archives_of(
    part: StoredPart, tensor: LazyTensor, first: int, chunks: list[ChunkStorageMetadata]
) -> Iterator[Archive]:
    axis = part.prepended_axes
    nbytes = tensor.nbytes * part.rows // max(tensor.rows, 1)
    for start, stop in row_ranges(part.rows, nbytes):
        offsets = list(part.offset)
        offsets[axis] += start
        sizes = (1,) * axis + (stop - start, *part.row_shape)
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        index = MetadataIndex(part.key, chunk.offsets, len(chunks))
        chunks.append(chunk)
        yield Archive(
            index=index, sizes=sizes, source=tensor, start=first + start, stop=first + stop
        )
