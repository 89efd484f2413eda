"""Export: a NeMo checkpoint to one Hugging Face directory that loads without this project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from torch import Tensor

from converters.checkpoint import open_checkpoint, read_checkpoint
from converters.family import Family
from converters.hf_weights import write_weights
from converters.mapping import to_hf
from converters.output import new_directory
from models.adapter_paths import is_adapter_checkpoint

LORA_EXPORTS = ("merged", "adapter")


def export_checkpoint(
    ckpt: str | Path,
    out: str | Path,
    layout: str = "hf",
    lora: str | None = None,
    base: str | None = None,
) -> dict[str, object]:
    """Export a checkpoint, from training or from `import`/`assemble`.

    Every file that came with the model (tokenizer, processor, templates, licence) lies in the
    checkpoint's assets and is written again; `import` has refused a model that lacks one.

    Args:
        ckpt: folder with `weights` and `context`.
        out: directory to write; must not exist or be empty.
        layout: "hf" for one directory that transformers loads, "vila" for the three folders of
            VILA (nvila only).
        lora: of a LoRA checkpoint: "merged" (also when None) for a whole model, "adapter" for the
            adapters alone, in a directory that peft loads.
        base: with "adapter", the Hugging Face model that it will be loaded onto.

    Returns:
        Figures about what was written.

    Raises:
        ValueError: no checkpoint of a known family, a layout that the family does not have, or
            `out` is not empty.
    """
    family, assets = open_checkpoint(ckpt)
    _check_lora(ckpt, layout, lora, base)
    if lora == "adapter":
        from converters.lora_directory import export_adapter  # peft takes seconds to import

        return export_adapter(ckpt, out, base)
    if layout not in family.layouts:
        raise ValueError(
            f"layout: {layout!r} does not exist for {family.name}; allowed are "
            f"{', '.join(family.layouts)}."
        )
    if layout == "hf":
        family.check_target(Path(out))
    with new_directory(out) as folder:
        config, megatron = read_checkpoint(ckpt)
        tensors = to_hf(family.table(config), megatron)
        if layout == "hf":
            _write_hf_layout(family, folder, assets, tensors)
        else:
            family.write_layout(layout, folder, assets, tensors)
    dtype = next(iter(tensors.values())).dtype
    return {
        "tensors": len(tensors),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _check_lora(ckpt: str | Path, layout: str, lora: str | None, base: str | None) -> None:
    if lora is not None and lora not in LORA_EXPORTS:
        raise ValueError(f"lora: {lora!r} is unknown; allowed are {', '.join(LORA_EXPORTS)}.")
    if lora is not None and not is_adapter_checkpoint(ckpt):
        raise ValueError(
            f"lora: {lora!r} is not possible, {ckpt} holds a whole model; leave it out."
        )
    if lora == "adapter" and layout != "hf":
        raise ValueError(f"lora: 'adapter' does not go with layout {layout!r}; allowed is 'hf'.")
    if base is not None and lora != "adapter":
        raise ValueError(f"base: {base!r} is used with lora='adapter' only; leave it out.")


def _write_hf_layout(
    family: Family, folder: Path, assets: Path, tensors: dict[str, Tensor]
) -> None:
    shutil.copytree(assets, folder, dirs_exist_ok=True)
    family.write_code(folder)
    write_weights(folder, tensors)
    path = folder / "config.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    for part in (description, description["text_config"], description["vision_config"]):
        part["torch_dtype"] = dtype
    path.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
