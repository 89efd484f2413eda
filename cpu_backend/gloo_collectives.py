"""Process groups asked for with NCCL are gloo's, and gloo learns to average."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from cpu_backend.patches import PatchLedger


def _with_gloo(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `init_process_group` and `new_group`: 'nccl' becomes 'gloo', CUDA details go."""

    @functools.wraps(original)
    def make_group(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], str) and "nccl" in args[0]:
            args = ("gloo", *args[1:])
        if isinstance(kwargs.get("backend"), str) and "nccl" in kwargs["backend"]:
            kwargs["backend"] = "gloo"
        device = kwargs.get("device_id")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device_id"] = None
        # NCCL's options; gloo refuses them.
        kwargs.pop("pg_options", None)
        return original(*args, **kwargs)

    return make_group


def _averaging_all_reduce(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def all_reduce(
        tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        if op == dist.ReduceOp.AVG:
            # Before the sum and not after it, so that asynchronous calls need no second step.
            tensor.div_(dist.get_world_size(group))
            op = dist.ReduceOp.SUM
        return original(tensor, op=op, group=group, async_op=async_op)

    return all_reduce


def _averaging_reduce_scatter(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def reduce_scatter_tensor(
        output: torch.Tensor,
        input: torch.Tensor,
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        if op == dist.ReduceOp.AVG:
            # A copy: the caller's input must stay as it is.
            input = input / dist.get_world_size(group)
            op = dist.ReduceOp.SUM
        return original(output, input, op=op, group=group, async_op=async_op)

    return reduce_scatter_tensor


def _nothing_for_empty(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `all_gather_into_tensor`: of empty tensors there is nothing to gather.

    NCCL launches nothing for them; gloo counts a collective. NeMo's progress printer gathers an
    empty list of timers on the first rank alone, after which gloo's ranks would wait for each other
    forever.
    """

    @functools.wraps(original)
    def all_gather_into_tensor(
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        if input_tensor.numel() == 0 and not async_op:
            return None
        return original(output_tensor, input_tensor, group=group, async_op=async_op)

    return all_gather_into_tensor


def _without_device_ids(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def barrier(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
        if group is None:
            return original(async_op=async_op)
        return original(group=group, async_op=async_op)

    return barrier


def install(ledger: PatchLedger) -> None:
    """Wraps the functions of `torch.distributed` that Megatron and Lightning call."""
    ledger.set_attribute(dist, "init_process_group", _with_gloo(dist.init_process_group))
    ledger.set_attribute(dist, "new_group", _with_gloo(dist.new_group))
    ledger.set_attribute(dist, "all_reduce", _averaging_all_reduce(dist.all_reduce))
    scatter = _averaging_reduce_scatter(dist.reduce_scatter_tensor)
    ledger.set_attribute(dist, "reduce_scatter_tensor", scatter)
    gather = _nothing_for_empty(dist.all_gather_into_tensor)
    ledger.set_attribute(dist, "all_gather_into_tensor", gather)
    ledger.set_attribute(dist, "barrier", _without_device_ids(dist.barrier))
