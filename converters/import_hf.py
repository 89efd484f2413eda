"""Import: a whole Hugging Face directory, or a model on the hub, to a NeMo checkpoint."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from converters.checkpoint import write_checkpoint
from converters.families import family_named, read_config
from converters.family import Family
from converters.hf_weights import read_weights
from converters.hub import open_source
from converters.mapping import to_megatron
from converters.output import new_directory

_ASSET_SUFFIXES = (".json", ".jinja", ".txt", ".model")


def import_checkpoint(family_name: str, hf: str | Path, out: str | Path) -> dict[str, object]:
    """Import a Hugging Face model.

    What can be judged from the small files is judged before the weights are downloaded.

    Args:
        family_name: nvila or mllama.
        hf: directory, or a model on the hub: `organisation/name` or `hf://organisation/name`.
        out: checkpoint to write; must not exist or be empty.

    Returns:
        Figures about what was written.

    Raises:
        ValueError: a model of another family, missing or damaged files, no access to the model on
            the hub, or `out` is not empty.
    """
    family = family_named(family_name)
    with new_directory(out) as folder, tempfile.TemporaryDirectory() as temporary:
        assets = Path(temporary)
        source = open_source(hf)
        check_family(source.small_files(), hf, family)
        copy_assets(source.small_files(), assets)
        family.complete_assets(assets, str(hf))
        config = family.describe(assets)
        tensors = named_tensors(source.all_files(), family)
        dtype = check_dtype(tensors, hf)
        write_checkpoint(folder, config, to_megatron(family.table(config), tensors), assets)
    return {
        "tensors": len(tensors),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "dtype": dtype,
    }


def check_family(directory: Path, hf: str | Path, family: Family) -> None:
    """Refuse a directory of another family.

    Raises:
        ValueError: config.json is missing or of another model type.
    """
    found = read_config(directory, "hf").get("model_type")
    if found != family.model_type:
        raise ValueError(
            f"hf: {hf} holds a model of type {found!r}; {family.model_type} is expected"
            f"{family.hint}."
        )


def named_tensors(directory: Path, family: Family) -> dict[str, Tensor]:
    """Read all tensors of a directory under the names of the family's table.

    Raises:
        ValueError: files are missing or damaged, or do not fit config.json.
    """
    return family.table_names(directory, read_weights(directory))


def check_dtype(tensors: Mapping[str, Tensor], hf: str | Path) -> str:
    """Return the name of the one floating-point dtype of all tensors.

    A NeMo checkpoint has one: a model of several would lose bits, a quantised one its meaning.

    Raises:
        ValueError: there are several, or integers.
    """
    names = {
        str(tensor.dtype).removeprefix("torch."): tensor.is_floating_point()
        for tensor in tensors.values()
    }
    if len(names) > 1 or not all(names.values()):
        raise ValueError(
            f"hf: {hf} has tensors of type {', '.join(sorted(names))}; one of float32, bfloat16 "
            "and float16 is needed for all."
        )
    return next(iter(names), "")


def copy_assets(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer, processor and template: no weights of any format, no code."""
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix in _ASSET_SUFFIXES
            and not path.name.endswith(".index.json")
        ):
            shutil.copyfile(path, target / path.name)
