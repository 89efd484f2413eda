"""The modules and contexts of `transformer_engine.pytorch`."""

from . import cpu_offload, cross_entropy, distributed, float8_tensor, fp8, optimizers, tensor
from .attention import DotProductAttention
from .distributed import checkpoint
from .fp8 import fp8_autocast, fp8_model_init
from .module import GroupedLinear, LayerNorm, LayerNormLinear, LayerNormMLP, Linear, RMSNorm

__all__ = [
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "LayerNormMLP",
    "Linear",
    "RMSNorm",
    "checkpoint",
    "cpu_offload",
    "cross_entropy",
    "distributed",
    "float8_tensor",
    "fp8",
    "fp8_autocast",
    "fp8_model_init",
    "optimizers",
    "tensor",
]
