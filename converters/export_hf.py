"""Export: a NeMo checkpoint to one Hugging Face directory that loads without this project."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from converters.family import Family
from converters.file_writer import FileTask, write_files
from converters.finished import open_checkpoint
from converters.hf_weights import plan_weights
from converters.lazy import LazyTensor
from converters.manifest import write_manifest
from converters.mapping import refuse_other_shapes, to_hf
from converters.nemo_weights import open_weights
from converters.output import new_directory, refuse_existing
from converters.request import DEFAULT, Request, figures, in_one_dtype, plan, total_bytes
from models.adapter_paths import is_adapter_checkpoint

LORA_EXPORTS = ("merged", "adapter")


def export_checkpoint(
    ckpt: str | Path,
    out: str | Path,
    layout: str = "hf",
    lora: str | None = None,
    base: str | None = None,
    request: Request = DEFAULT,
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
        request: how to convert.

    Returns:
        Figures about what was written, or would be.

    Raises:
        ValueError: no checkpoint of a known family, a layout that the family does not have, or
            `out` is not empty or has no room.
    """
    family, assets = open_checkpoint(ckpt)
    _check_lora(ckpt, layout, lora, base)
    if lora == "adapter":
        from converters.lora_directory import export_adapter  # peft takes seconds to import

        return export_adapter(ckpt, out, base, request)
    if layout not in family.layouts:
        raise ValueError(
            f"layout: {layout!r} does not exist for {family.name}; allowed are "
            f"{', '.join(family.layouts)}."
        )
    if layout == "hf":
        family.check_target(Path(out))
    refuse_existing(out)
    table = family.table(assets)
    weights = open_weights(ckpt, [row.megatron_key for row in table])
    converted = family.disk_tensors(assets, to_hf(table, weights.tensors))
    tensors = in_one_dtype(converted, request.dtype, f"ckpt: {ckpt}")
    refuse_other_shapes(
        family.hf_shapes(assets),
        {name: tensor.shape for name, tensor in tensors.items()},
        f"ckpt: the weights of {ckpt} do not fit its context/assets/config.json",
    )
    if request.dry_run:
        return plan(tensors, out)
    with new_directory(out, total_bytes(tensors)) as folder:
        if layout == "hf":
            tasks = _plan_hf_layout(family, folder, assets, tensors)
        else:
            tasks = family.plan_layout(layout, folder, assets, tensors)
        written = write_files(tasks, request.jobs, weights.release)
        write_manifest(folder, {file.path: file.sha256 for file in written})
    return figures(tensors)


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


def _plan_hf_layout(
    family: Family, folder: Path, assets: Path, tensors: Mapping[str, LazyTensor]
) -> list[FileTask[None]]:
    shutil.copytree(assets, folder, dirs_exist_ok=True)
    family.write_code(folder)
    path = folder / "config.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    for part in (description, description["text_config"], description["vision_config"]):
        part["torch_dtype"] = dtype
    path.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return plan_weights(folder, tensors)
