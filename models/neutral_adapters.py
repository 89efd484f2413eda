"""Adapters that change nothing: the weights with which an adapted model is its base."""

import torch
from nemo.lightning.pytorch.callbacks.peft import AdapterWrapper
from torch import nn

from models.dora import DirectionLinear


def neutral_adapters(model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Return the adapters' weights that matter for this, each with its neutral value.

    With B = 0 the product with A adds nothing; DoRA's lengths are then those of the base's rows.
    All tensor-parallel ranks must call this.

    Args:
        model: with adapters on some layers, or on none.
    """
    neutral: list[tuple[nn.Parameter, torch.Tensor]] = []
    for module in model.modules():
        if not isinstance(module, AdapterWrapper):
            continue
        outer = module.adapter.linear_out.weight
        neutral.append((outer, torch.zeros_like(outer, requires_grad=False)))
        if isinstance(module, DirectionLinear):
            magnitude = module.adapter.weight_magnitude
            neutral.append((magnitude, module.base_lengths().to(magnitude.dtype)))
    return neutral


def adapter_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return all weights of the adapters."""
    return {
        parameter
        for module in model.modules()
        if isinstance(module, AdapterWrapper)
        for parameter in module.adapter.parameters()
    }
