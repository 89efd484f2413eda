"""Operations over lists of tensors, with Transformer Engine's calling convention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_CHUNK = 2048 * 32
_ROW = 4096


def multi_tensor_applier(
    operation: Callable[..., Any],
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    *arguments: Any,
) -> Any:
    """Returns `operation(chunk size, noop_flag, tensor_lists, *arguments)`."""
    return operation(_CHUNK, noop_flag, tensor_lists, *arguments)


def _norm(tensor: Tensor) -> Tensor:
    """Returns the L2 norm in fp64.

    In rows, because torch sums a long fp32 tensor on a CPU in fp32, wrong by 0.1 % for 20 million
    numbers, while converting it to fp64 first takes 20 times as long.
    """
    flat = tensor.reshape(-1)
    if flat.dtype != torch.float32:
        flat = flat.float()
    whole = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=-1).double()
    rest = torch.linalg.vector_norm(flat[whole:]).double()
    return torch.linalg.vector_norm(torch.cat((rows, rest.view(1))))


def multi_tensor_l2norm(
    chunk_size: int,
    noop_flag: Tensor,
    tensor_lists: Sequence[Sequence[Tensor]],
    per_tensor: bool = False,
    *unused: Any,
) -> tuple[Tensor, Tensor]:
    """Returns the L2 norm over all tensors, fp32 `[1]`, and, if wanted, of each, fp32 `[n]`."""
    norms = torch.stack([_norm(tensor) for tensor in tensor_lists[0]])
    total = torch.linalg.vector_norm(norms).view(1).float()
    return total, norms.float() if per_tensor else torch.empty(0)


def multi_tensor_scale(
    chunk_size: int, noop_flag: Tensor, tensor_lists: Sequence[Sequence[Tensor]], scale: float
) -> None:
    """Writes `source * scale` into the destinations; sets the flag if a source is not finite."""
    sources, destinations = tensor_lists
    for source, destination in zip(sources, destinations, strict=True):
        if not torch.isfinite(source).all():
            noop_flag.fill_(1)
        if source is destination:
            destination.mul_(scale)
        else:
            destination.copy_(source).mul_(scale)
