"""Reading and writing the safetensors of a Hugging Face directory, sharded or not."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_SHARD_SIZE = "5GB"


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


def read_weights(directory: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Read all tensors of a Hugging Face directory (memory-mapped).

    Args:
        directory: holds model.safetensors, or shards and their index.
        prefix: put before every name.

    Raises:
        ValueError: files are missing or damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(Path(directory)):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    tensors[prefix + name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"hf: {path} is damaged ({error}); download it again.") from error
    return tensors


def write_weights(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Write safetensors, with an index when they exceed one shard."""
    save_torch_state_dict(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        directory,
        max_shard_size=MAX_SHARD_SIZE,
        metadata={"format": "pt"},
    )
