"""Splitting the output of the QKV projection."""

import torch
from torch import Tensor


class _SplitAlongDim:
    """Has the `apply` of Transformer Engine's autograd function; views need no special gradient."""

    @staticmethod
    def apply(mixed: Tensor, split_dim: int, sizes: int | list[int]) -> tuple[Tensor, ...]:
        """Returns views of `mixed`, of the given sizes along one dimension."""
        return torch.split(mixed, sizes, dim=split_dim)
