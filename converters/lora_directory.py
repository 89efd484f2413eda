"""A LoRA checkpoint as an adapter directory that peft loads onto the Hugging Face base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from converters.checkpoint import model_tensors, open_checkpoint, single_process
from converters.families import read_config
from converters.lora import AdaptedModel, adapted_layers, load_adapted
from converters.mapping import Row
from converters.mllama import module_name
from converters.output import new_directory
from models.adapter_paths import AdapterSettings, adapter_settings, is_adapter_checkpoint

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_NOT_OF_AN_ADAPTER = ("config.json", "generation_config.json")
"""Assets that describe the base; the rest (tokenizer, processor, licence) goes with the adapter."""

# In families whose Hugging Face model can be adapted: from a tensor's name on disk to its name in
# memory, and the modules beside the language model that peft keeps whole copies of.
_IN_MEMORY: Mapping[str, Callable[[str], str]] = {"mllama": module_name}
_WHOLE_MODULES: Mapping[str, tuple[str, ...]] = {
    "mllama": ("model.vision_model", "model.multi_modal_projector")
}


def export_adapter(ckpt: str | Path, out: str | Path, base: str | None = None) -> dict[str, object]:
    """Write `adapter_config.json`, `adapter_model.safetensors`, tokenizer and processor.

    A vision encoder or projection that was trained too is in the directory as a whole, which peft
    puts in place of the base's (`modules_to_save`).

    Args:
        ckpt: LoRA checkpoint.
        out: directory to write; must not exist or be empty.
        base: Hugging Face directory or name of the base, for `base_model_name_or_path`; None takes
            the name in the base's config.json, where there is one.

    Returns:
        Figures about what was written.

    Raises:
        ValueError: no LoRA checkpoint, a family or a way of training that an adapter directory
            cannot express, or `out` is not empty.
    """
    family, assets = open_checkpoint(ckpt)
    if not is_adapter_checkpoint(ckpt):
        raise ValueError(f"lora: {ckpt} holds a whole model, no adapters; leave the option out.")
    if family.name not in _IN_MEMORY:
        raise ValueError(
            f"lora: 'adapter' is not supported for {family.name}; use the merged export."
        )
    with new_directory(out) as folder:
        with single_process():
            adapted = load_adapted(ckpt)
            rows = {row.megatron_key: row for row in family.table(adapted.config)}
            in_memory = _IN_MEMORY[family.name]
            tensors, targets = _adapter_tensors(adapted, rows, in_memory)
            whole, modules = _whole_modules(
                adapted, rows, in_memory, _WHOLE_MODULES[family.name], ckpt
            )
        _copy_assets(assets, folder)
        base = base or read_config(assets, "ckpt").get("_name_or_path")
        _write_config(folder, adapter_settings(ckpt), targets, modules, base)
        tensors |= whole
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    return {
        "tensors": len(tensors),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "adapted_modules": len(targets),
        "whole_modules": ", ".join(modules) or "none",
    }


def _adapter_tensors(
    adapted: AdaptedModel, rows: Mapping[str, Row], in_memory: Callable[[str], str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the adapters under peft's names, and the modules that they belong to.

    An adapter of a fused layer becomes one for each part: all have its A, and each its rows of B.
    """
    tensors: dict[str, Tensor] = {}
    targets: list[str] = []
    for path, layer in adapted_layers(adapted.module):
        row = rows[f"{path}.weight"]
        inner = layer.adapter.linear_in.weight.detach()
        outers = row.split(layer.adapter.linear_out.weight.detach())
        for key, outer in zip(row.hf_keys, outers, strict=True):
            module = in_memory(key).removesuffix(".weight")
            targets.append(module)
            tensors[f"{_PEFT_PREFIX}{module}.lora_A.weight"] = inner.clone()
            tensors[f"{_PEFT_PREFIX}{module}.lora_B.weight"] = outer.clone().contiguous()
    return tensors, targets


def _whole_modules(
    adapted: AdaptedModel,
    rows: Mapping[str, Row],
    in_memory: Callable[[str], str],
    allowed: tuple[str, ...],
    ckpt: str | Path,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of each module that was trained in full, and the modules' names.

    Raises:
        ValueError: something was trained that lies in none of them.
    """

    def module_of(megatron_key: str) -> str | None:
        name = in_memory(rows[megatron_key].hf_keys[0])
        return next((module for module in allowed if name.startswith(f"{module}.")), None)

    trained = {name: module_of(name) for name in adapted.trained}
    elsewhere = sorted(name for name, module in trained.items() if module is None)
    if elsewhere:
        raise ValueError(
            f"lora: {ckpt} has trained {elsewhere[0]} ({len(elsewhere)} tensors of this kind) "
            "beside its adapters, which an adapter directory cannot hold; use the merged export."
        )
    modules = sorted({module for module in trained.values() if module is not None})
    tensors: dict[str, Tensor] = {}
    for key, tensor in model_tensors(adapted.module).items():
        if key in rows and module_of(key) in modules:
            row = rows[key]
            for hf_key, part in zip(row.hf_keys, row.split(tensor.detach()), strict=True):
                tensors[f"{_PEFT_PREFIX}{in_memory(hf_key)}"] = part.clone().contiguous()
    return tensors, modules


def _copy_assets(assets: Path, folder: Path) -> None:
    shutil.copytree(
        assets, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_NOT_OF_AN_ADAPTER)
    )


def _write_config(
    folder: Path,
    settings: AdapterSettings,
    targets: list[str],
    modules: list[str],
    base: str | None,
) -> None:
    """Write adapter_config.json; full names, as vision layers too have a `q_proj`."""
    config = LoraConfig(
        r=settings.dim,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        modules_to_save=modules or None,
        base_model_name_or_path=base,
        bias="none",
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    path = folder / CONFIG_NAME
    description = json.loads(path.read_text(encoding="utf-8"))
    description["target_modules"] = sorted(targets)  # peft has them in a set, in any order
    path.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
