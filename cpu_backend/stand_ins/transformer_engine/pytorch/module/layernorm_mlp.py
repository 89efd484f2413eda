"""`te.pytorch.LayerNormMLP`: there so that peft can compare with it, not to be used."""

from typing import Any

import torch


class LayerNormMLP(torch.nn.Module):
    """A norm and a whole MLP in one module, which Megatron-Core's layers do not use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "LayerNormMLP is not possible on the CPU backend; use LayerNormLinear and Linear."
        )
