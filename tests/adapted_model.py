"""A LoRA checkpoint as it was trained, by Megatron-Core's loader: what exports are held to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.transformer.module import MegatronModule
from nemo.collections.llm.peft.lora import LoRALinear
from torch import nn

from converters.checkpoint import load_model, model_tensors, write_context
from converters.nemo_weights import PREFIX, adapter_tensors
from converters.torch_dist_reader import CheckpointFolder
from models.adapter_paths import adapter_settings, base_checkpoint, write_metadata
from models.dora import LanguageDoRA
from models.family_config import FamilyConfig
from models.lora import LanguageLoRA

_ADAPTER = ".adapter."


@dataclass(frozen=True, kw_only=True)
class AdaptedModel:
    """A model with its adapters, as it was trained.

    Attributes:
        config: sizes.
        module: computes with the adapters beside the base's weights.
        trained: names of the base's own tensors that were trained too.
    """

    config: FamilyConfig
    module: MegatronModule
    trained: frozenset[str]


def load_adapted(checkpoint: str | Path, dtype: torch.dtype | None = None) -> AdaptedModel:
    """Load a LoRA checkpoint and its base on this process (inside `single_process`).

    Args:
        checkpoint: folder with `weights` and `context`; its description names the base.
        dtype: of the loaded parameters; None keeps the base's.

    Raises:
        ValueError: the base is gone, or the weights do not fit it.
    """
    settings = adapter_settings(checkpoint)
    base = base_checkpoint(checkpoint)
    config, module = load_model(base, dtype)
    own = CheckpointFolder(Path(checkpoint) / "weights", PREFIX)
    adapter_tensors(own, model_tensors(module), settings)  # refuses what does not fit
    adapt = {"lora": LanguageLoRA, "dora": LanguageDoRA}[settings.kind]
    adapt(target_modules=list(settings.target_modules), dim=settings.dim, alpha=settings.alpha)(
        module
    )
    loaded = _read_into(module, Path(checkpoint) / "weights")
    return AdaptedModel(
        config=config,
        module=module,
        trained=frozenset(name for name in loaded if _ADAPTER not in name),
    )


def write_adapted(
    folder: Path, base: Path, trained: Collection[str] = (), kind: str = "lora", **options: Any
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Write a LoRA checkpoint, with random adapters and changes of other tensors.

    Args:
        folder: of the new checkpoint.
        base: the checkpoint that the adapters belong to.
        trained: names of the base's own tensors that have changed too.
        kind: lora or dora.
        options: of LanguageLoRA.

    Returns:
        The adapters by the name of their layer: (A, B).
    """
    config, module = load_model(base)
    adapt = {"lora": LanguageLoRA, "dora": LanguageDoRA}[kind](**options)
    adapt(module)
    generator = torch.Generator().manual_seed(1)
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("weight_magnitude"):
                parameter.mul_(1 + torch.rand(parameter.shape, generator=generator))
            elif _ADAPTER in name:
                parameter.normal_(0.0, 0.1, generator=generator)
                layer, _, kind = name.removesuffix(".weight").partition(_ADAPTER)
                adapters.setdefault(layer, {})[kind] = parameter.clone()
            elif name in trained:
                parameter.add_(0.1)
    state = {
        key: value
        for key, value in module.sharded_state_dict(prefix=PREFIX).items()
        if _ADAPTER in key or key.removeprefix(PREFIX) in trained
    }
    (folder / "weights").mkdir(parents=True)
    dist_checkpointing.save(
        {"sharded_state_dict": state}, str(folder / "weights"), content_metadata={}
    )
    write_context(folder, config, base / "context" / "assets")
    write_metadata(folder, base, adapt.settings())
    return {name: (pair["linear_in"], pair["linear_out"]) for name, pair in adapters.items()}


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield the layers with adapters by the names that they have in the table."""
    for path, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            yield path, layer


def _read_into(module: MegatronModule, weights: Path) -> list[str]:
    """Load what a LoRA checkpoint holds into a model and return the names."""
    stored = {
        name: tuple(tensor.global_shape)
        for name, tensor in dist_checkpointing.load_tensors_metadata(str(weights)).items()
        if name.startswith(PREFIX)
    }
    metadata = dist_checkpointing.load_content_metadata(str(weights)) or {}
    whole = module.sharded_state_dict(prefix=PREFIX, metadata=metadata)
    sharded = {name: value for name, value in whole.items() if value.key in stored}
    loaded = dist_checkpointing.load(
        {"state_dict": sharded}, str(weights), validate_access_integrity=False
    )
    state = {name.removeprefix(PREFIX): value for name, value in loaded["state_dict"].items()}
    # Strict would ask for the base's weights, which are there already.
    surplus = module.load_state_dict(state, strict=False).unexpected_keys
    assert not surplus, surplus
    return list(state)
