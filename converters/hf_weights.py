"""Reading and writing the safetensors of a Hugging Face directory, sharded or not, lazily."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from converters.file_writer import FileTask
from converters.hashed_file import HashedFile
from converters.lazy import LazyTensor, MappedFile, MappedTensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_PATTERN = "model{suffix}.safetensors"
MAX_SHARD_SIZE = "5GB"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""As the format's own reader has it."""


class HfWeights:
    """The tensors of a Hugging Face directory.

    Args:
        directory: holds model.safetensors, or shards and their index.
        prefix: put before every name.

    Raises:
        ValueError: files are missing or damaged.
    """

    def __init__(self, directory: str | Path, prefix: str = "") -> None:
        self.tensors: dict[str, LazyTensor] = {}
        self._files: list[MappedFile] = []
        for path in weight_files(Path(directory)):
            for name, tensor in self._open(path).items():
                self.tensors[prefix + name] = tensor

    def release(self) -> None:
        """Give back the memory of what has been read."""
        for file in self._files:
            file.release()

    def _open(self, path: Path) -> dict[str, LazyTensor]:
        try:
            entries, begin = _read_header(path)
            file = MappedFile(path)
            self._files.append(file)
            return {
                name: MappedTensor(
                    file,
                    _DTYPES[entry["dtype"]],
                    tuple(entry["shape"]),
                    begin + entry["data_offsets"][0],
                )
                for name, entry in entries.items()
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"hf: {path} is damaged ({error}); download it again.") from error


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a directory.

    Raises:
        ValueError: there are none, one that the index names is missing, or the index is damaged.
    """
    index = directory / INDEX_NAME
    if not index.is_file():
        single = directory / SINGLE_NAME
        if not single.is_file():
            raise ValueError(f"hf: {directory} has neither {SINGLE_NAME} nor {INDEX_NAME}.")
        return [single]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"hf: {index} is damaged ({error}); download it again.") from error
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"hf: {directory} lacks {', '.join(missing)}, which {INDEX_NAME} names; "
            "download the missing files."
        )
    return [directory / name for name in names]


def plan_weights(directory: Path, tensors: Mapping[str, LazyTensor]) -> list[FileTask[None]]:
    """Write the index where one is needed, and return what writes each file.

    Files are cut, named and ordered as huggingface_hub and safetensors do it.

    Args:
        directory: an existing folder.
        tensors: by their names on disk.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=_PATTERN,
        max_shard_size=MAX_SHARD_SIZE,
    )
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        content = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / INDEX_NAME).write_text(content, encoding="utf-8")
    return [
        plan_file(directory / file, {name: tensors[name] for name in names})
        for file, names in split.filename_to_tensors.items()
    ]


def plan_file(path: Path, tensors: Mapping[str, LazyTensor]) -> FileTask[None]:
    """Return what writes one file."""
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return FileTask(path=path, nbytes=nbytes, write=partial(_write_file, tensors))


def _write_file(tensors: Mapping[str, LazyTensor], file: HashedFile) -> None:
    # Wide types first, so that all are aligned; then by name.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _LENGTH_BYTES)
    file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
    for name in ordered:
        for start, stop in tensors[name].row_chunks():
            file.append(tensors[name], start, stop)


def _read_header(path: Path) -> tuple[dict[str, dict], int]:
    """Return the entries of a file's tensors, and where their bytes begin.

    Raises:
        ValueError: the header or the length of the file is not what it should be.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - _LENGTH_BYTES):
            raise ValueError("its header is cut short")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    begin = _LENGTH_BYTES + length
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is of type {entry['dtype']}, which is not known")
        nbytes = prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize
        if first != end or last - first != nbytes:
            raise ValueError(f"{name} has {last - first} bytes at {first}, not {nbytes} at {end}")
        end = last
    if size != begin + end:
        raise ValueError(f"it has {size} bytes, not {begin + end}")
    return entries, begin
