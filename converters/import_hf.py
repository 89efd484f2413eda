"""Import: a whole Hugging Face directory to a NeMo checkpoint."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch import Tensor

from converters.checkpoint import write_checkpoint
from converters.hf_weights import read_weights
from converters.mapping import to_megatron
from converters.nvila import nvila_table
from converters.output import new_directory
from converters.parents import read_config
from models.nvila.config import config_from_hf, read_assets_config
from models.nvila.hf_code.configuration_nvila_lite import NVILALiteConfig

_ASSET_SUFFIXES = (".json", ".jinja", ".txt", ".model")


def import_nvila(hf: str | Path, out: str | Path) -> dict[str, object]:
    """Import an exported NVILA directory (flat `nvila_lite` names).

    Args:
        hf: Hugging Face directory.
        out: checkpoint to write; must not exist or be empty.

    Returns:
        Figures about what was written.

    Raises:
        ValueError: a model of another family, missing or damaged files, or `out` is not empty.
    """
    check_family(hf)
    with new_directory(out) as folder, tempfile.TemporaryDirectory() as assets:
        copy_assets(Path(hf), Path(assets))
        description = read_assets_config(assets)
        config = config_from_hf(description)
        tensors = read_nvila_weights(hf, description)
        write_checkpoint(folder, config, to_megatron(nvila_table(config), tensors), Path(assets))
    return {
        "tensors": len(tensors),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
    }


def check_family(hf: str | Path) -> None:
    """Refuse a directory of another family.

    Raises:
        ValueError: config.json is missing or of another model type.
    """
    found = read_config(hf, "hf").get("model_type")
    if found != NVILALiteConfig.model_type:
        raise ValueError(
            f"hf: {hf} holds a model of type {found!r}; {NVILALiteConfig.model_type} is expected "
            "(a language model and a vision tower are put together with `assemble`)."
        )


def read_nvila_weights(hf: str | Path, description: NVILALiteConfig) -> dict[str, Tensor]:
    """Read the tensors; a stored copy of a tied embedding is dropped when it is one.

    Raises:
        ValueError: files are missing or damaged, or the copy differs from the embedding.
    """
    tensors = read_weights(hf)
    head = "llm.lm_head.weight"
    if description.text_config.tie_word_embeddings and head in tensors:
        if not tensors[head].equal(tensors["llm.model.embed_tokens.weight"]):
            raise ValueError(
                f"hf: {hf} says tie_word_embeddings, but {head} differs from the embedding."
            )
        del tensors[head]
    return tensors


def copy_assets(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer, processor and template: no weights of any format, no code."""
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix in _ASSET_SUFFIXES
            and not path.name.endswith(".index.json")
        ):
            shutil.copyfile(path, target / path.name)
