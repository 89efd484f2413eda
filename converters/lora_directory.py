"""A LoRA checkpoint as an adapter directory that peft loads onto the Hugging Face base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from peft import LoraConfig

from converters.families import read_config
from converters.family import Family
from converters.file_writer import write_files
from converters.finished import open_checkpoint
from converters.hf_weights import plan_file
from converters.lazy import LazyTensor
from converters.manifest import write_manifest
from converters.mapping import split
from converters.nemo_weights import NemoWeights, open_weights
from converters.output import new_directory, refuse_existing
from converters.request import DEFAULT, Request, figures, in_one_dtype, plan, total_bytes
from converters.rows import Row
from models.adapter_paths import DORA, AdapterSettings, adapter_settings, is_adapter_checkpoint

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_NOT_OF_AN_ADAPTER = ("config.json", "generation_config.json")
"""Assets that describe the base; the rest (tokenizer, processor, licence) goes with the adapter."""


def export_adapter(
    ckpt: str | Path, out: str | Path, base: str | None = None, request: Request = DEFAULT
) -> dict[str, object]:
    """Write `adapter_config.json`, `adapter_model.safetensors`, tokenizer and processor.

    A vision encoder or projection that was trained too is in the directory as a whole, which peft
    puts in place of the base's (`modules_to_save`).

    Args:
        ckpt: LoRA checkpoint.
        out: directory to write; must not exist or be empty.
        base: Hugging Face directory or name of the base, for `base_model_name_or_path`; None takes
            the name in the base's config.json, where there is one.
        request: how to convert.

    Returns:
        Figures about what was written, or would be.

    Raises:
        ValueError: no LoRA checkpoint, a family or a way of training that an adapter directory
            cannot express, or `out` is not empty or has no room.
    """
    family, assets = open_checkpoint(ckpt)
    if not is_adapter_checkpoint(ckpt):
        raise ValueError(f"lora: {ckpt} holds a whole model, no adapters; leave the option out.")
    refuse_existing(out)
    rows = {row.megatron_key: row for row in family.table(assets)}
    weights = open_weights(ckpt, rows)
    in_memory = family.memory_name
    tensors, targets = _adapter_tensors(family, assets, weights, rows)
    whole, modules = _whole_modules(weights, rows, in_memory, family.whole_modules, ckpt)
    tensors = in_one_dtype(tensors | whole, request.dtype, f"ckpt: {ckpt}")
    if request.dry_run:
        return plan(tensors, out)
    with new_directory(out, total_bytes(tensors)) as folder:
        _copy_assets(assets, folder)
        base = base or read_config(assets, "ckpt").get("_name_or_path")
        transposed = family.has_transposed_layers(assets)
        _write_config(folder, adapter_settings(ckpt), targets, modules, base, transposed)
        task = plan_file(folder / WEIGHTS_NAME, tensors)
        (written,) = write_files([task], request.jobs, weights.release)
        write_manifest(folder, {written.path: written.sha256})
    return figures(tensors) | {
        "adapted_modules": len(targets),
        "whole_modules": ", ".join(modules) or "none",
    }


def _adapter_tensors(
    family: Family, assets: Path, weights: NemoWeights, rows: Mapping[str, Row]
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Return the adapters under peft's names, and the modules that they belong to.

    An adapter of a fused layer becomes one for each part: all have its A, and each its rows of B.
    """
    tensors: dict[str, LazyTensor] = {}
    targets: list[str] = []
    for layer, adapter in weights.adapters.items():
        parts = split(rows[f"{layer}.weight"], adapter.outer)
        for key, outer in family.adapter_parts(assets, parts).items():
            module = family.memory_name(key).removesuffix(".weight")
            targets.append(module)
            tensors[f"{_PEFT_PREFIX}{module}.lora_A.weight"] = adapter.inner
            tensors[f"{_PEFT_PREFIX}{module}.lora_B.weight"] = outer
        if adapter.magnitude is not None:
            parts = split(rows[f"{layer}.weight"], adapter.magnitude)
            for key, magnitude in family.adapter_parts(assets, parts).items():
                module = family.memory_name(key).removesuffix(".weight")
                tensors[f"{_PEFT_PREFIX}{module}.lora_magnitude_vector"] = magnitude
    return tensors, targets


def _whole_modules(
    weights: NemoWeights,
    rows: Mapping[str, Row],
    in_memory: Callable[[str], str],
    allowed: tuple[str, ...],
    ckpt: str | Path,
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Return the tensors of each module that was trained in full, and the modules' names.

    Raises:
        ValueError: something was trained that lies in none of them.
    """

    def module_of(megatron_key: str) -> str | None:
        name = in_memory(rows[megatron_key].hf_keys[0])
        return next((module for module in allowed if name.startswith(f"{module}.")), None)

    trained = {name: module_of(name) for name in weights.trained}
    elsewhere = sorted(name for name, module in trained.items() if module is None)
    if elsewhere:
        raise ValueError(
            f"lora: {ckpt} has trained {elsewhere[0]} ({len(elsewhere)} tensors of this kind) "
            "beside its adapters, which an adapter directory cannot hold; use the merged export."
        )
    modules = sorted({module for module in trained.values() if module is not None})
    tensors: dict[str, LazyTensor] = {}
    for key, tensor in weights.tensors.items():
        if module_of(key) in modules:
            for hf_key, part in split(rows[key], tensor).items():
                tensors[f"{_PEFT_PREFIX}{in_memory(hf_key)}"] = part
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
    transposed: bool,
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
        fan_in_fan_out=transposed,
        use_dora=settings.kind == DORA,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    path = folder / CONFIG_NAME
    description = json.loads(path.read_text(encoding="utf-8"))
    description["target_modules"] = sorted(targets)  # peft has them in a set, in any order
    path.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
