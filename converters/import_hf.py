"""Import: a whole Hugging Face directory, or a model on the hub, to a NeMo checkpoint."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from converters.asset_files import read_json, write_chat_template
from converters.checkpoint_writer import fitting_structure, write_checkpoint
from converters.families import check_family, family_named
from converters.hf_weights import HfWeights
from converters.hub import open_source
from converters.mapping import to_megatron
from converters.output import new_directory, refuse_existing
from converters.request import DEFAULT, Request, figures, in_one_dtype, plan, total_bytes
from models.conversation_templates import conversation_template as find_template

_ASSET_SUFFIXES = (".json", ".jinja", ".txt", ".model")


def import_checkpoint(
    family_name: str,
    hf: str | Path,
    out: str | Path,
    request: Request = DEFAULT,
    conversation_template: str | None = None,
) -> dict[str, object]:
    """Import a Hugging Face model.

    What can be judged from the small files is judged before the weights are downloaded, and what
    can be judged from names, shapes and types before anything is written.

    Args:
        family_name: nvila, mllama or llava.
        hf: directory, or a model on the hub: `organisation/name` or `hf://organisation/name`.
        out: checkpoint to write; must not exist or be empty.
        request: how to convert.
        conversation_template: name of one that takes the place of the model's chat template.

    Returns:
        Figures about what was written, or would be.

    Raises:
        ValueError: an unknown template, a model of another family, missing or damaged files, no
            access to the model on the hub, or `out` is not empty or has no room.
    """
    family = family_named(family_name)
    refuse_existing(out)
    template = None
    if conversation_template is not None:
        template = find_template(conversation_template, "conversation_template")
    with tempfile.TemporaryDirectory() as temporary:
        assets = Path(temporary)
        source = open_source(hf)
        check_family(source.small_files(), hf, family)
        copy_assets(source.small_files(), assets)
        if template is not None:
            tokenizer_config = read_json(assets / "tokenizer_config.json", str(hf))
            write_chat_template(assets, template.chat_template, tokenizer_config)
        family.complete_assets(assets, str(hf))
        config = family.describe(assets)
        directory = source.all_files()
        weights = HfWeights(directory)
        tensors = family.known_tensors(directory, weights)
        tensors = in_one_dtype(tensors, request.dtype, f"hf: {hf}")
        megatron = to_megatron(family.table(assets), tensors)
        if request.dry_run:
            fitting_structure(config, megatron)
            return plan(megatron, out)
        with new_directory(out, total_bytes(megatron)) as folder:
            write_checkpoint(folder, config, megatron, assets, weights.release, request.jobs)
    return figures(tensors)


def copy_assets(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer, processor and template: no weights of any format, no code."""
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix in _ASSET_SUFFIXES
            and not path.name.endswith(".index.json")
        ):
            shutil.copyfile(path, target / path.name)
