"""The four differentiable collectives of tensor and sequence parallelism.

Each is the other's gradient: copy and reduce; gather and reduce-scatter along the sequence, which
is dimension 0. With one process per group they cost nothing.
"""

from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Group: TypeAlias = dist.ProcessGroup | None


def group_size(group: Group) -> int:
    """Returns the number of processes in a group, 1 without a group."""
    return 1 if group is None else dist.get_world_size(group)


def _all_reduced(tensor: Tensor, group: Group) -> Tensor:
    reduced = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, group=group)
    return reduced


def _gathered(tensor: Tensor, group: Group) -> Tensor:
    shape = (tensor.shape[0] * group_size(group), *tensor.shape[1:])
    output = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    dist.all_gather_into_tensor(output, tensor.contiguous(), group=group)
    return output


def _reduced_and_scattered(tensor: Tensor, group: Group) -> Tensor:
    size = group_size(group)
    assert tensor.shape[0] % size == 0, "Megatron-Core pads sequences to a multiple of TP"
    shape = (tensor.shape[0] // size, *tensor.shape[1:])
    output = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    dist.reduce_scatter_tensor(output, tensor.contiguous(), group=group)
    return output


class _CopyToGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_reduced(gradient, ctx.group), None


class _ReduceFromGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        return _all_reduced(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gathered(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _reduced_and_scattered(gradient, ctx.group), None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _reduced_and_scattered(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.group), None


def copy_to_group(tensor: Tensor, group: Group) -> Tensor:
    """Returns the tensor; its gradient is summed over the group."""
    return _CopyToGroup.apply(tensor, group)


def reduce_from_group(tensor: Tensor, group: Group) -> Tensor:
    """Returns the sum over the group; its gradient is passed on as it is."""
    return _ReduceFromGroup.apply(tensor, group)


def gather_sequence(tensor: Tensor, group: Group) -> Tensor:
    """Returns the sequence parts of all processes, [s / n, ...] -> [s, ...]."""
    return _GatherSequence.apply(tensor, group)


def reduce_scatter_sequence(tensor: Tensor, group: Group) -> Tensor:
    """Returns this process's part of the sum over the group, [s, ...] -> [s / n, ...]."""
    return _ReduceScatterSequence.apply(tensor, group)
