"""`te.pytorch.GroupedLinear`: there so that Megatron-Core can be imported, not to be used."""

from typing import Any

import torch


class GroupedLinear(torch.nn.Module):
    """The layer of grouped experts, which the CPU backend does not have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "moe_grouped_gemm=True is not possible on the CPU backend, which has no GroupedLinear; "
            "set moe_grouped_gemm=False."
        )
