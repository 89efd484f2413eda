"""What the layers share: initialisation, extra state, and their tensor-parallel group."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from ..collectives import Group, group_size

Initialiser = Callable[[Tensor], Any]

# Arguments of Transformer Engine that change how it communicates or stores, never what it computes.
_WITHOUT_EFFECT = frozenset(
    {
        "delay_wgrad_compute",
        "fuse_wgrad_accumulation",  # the gradient arrives in .grad; Megatron's DDP adds it itself
        "save_original_input",
        "seq_length",
        "symmetric_ar_type",
        "micro_batch_size",
    }
)


def check_arguments(layer: object, arguments: dict[str, Any]) -> None:
    """Refuses arguments that are neither implemented nor without effect on the result."""
    for name in arguments:
        if name not in _WITHOUT_EFFECT and not name.startswith("ub_"):
            raise TypeError(
                f"{type(layer).__name__} got the argument {name!r}, which the CPU backend's "
                "Transformer Engine does not implement."
            )


def get_dummy_wgrad(shape: list[int], dtype: torch.dtype, zero: bool = False) -> Tensor:
    """Returns a gradient to hand to autograd when the real one was added elsewhere."""
    return torch.zeros(shape, dtype=dtype) if zero else torch.empty(shape, dtype=dtype)


class ExtraState(torch.nn.Module):
    """A module with the key `_extra_state` in its state dictionary, as Transformer Engine's.

    On a GPU it holds FP8 scaling factors as bytes, and nothing in other precisions. They are kept
    unread: they mean nothing here, and reading them would be unpickling whatever a file says.
    """

    _kept_state: Any = None

    def get_extra_state(self) -> Any:
        """Returns what was loaded, else an empty tensor."""
        return torch.empty(0, dtype=torch.uint8) if self._kept_state is None else self._kept_state

    def set_extra_state(self, state: Any) -> None:
        """Keeps a state that is not empty for the next `get_extra_state`."""
        empty = state is None or (isinstance(state, Tensor) and state.numel() == 0)
        self._kept_state = None if empty else state


class TransformerEngineBaseModule(ExtraState):
    """Base of the layers that hold weights: the tensor-parallel group and the initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8 = False
        self.fp8_meta: dict[str, Any] = {}
        self.tp_group: Group = None
        self.tp_group_initialized = False
        self.tp_size = 1
        self._initialisers: list[tuple[str, Initialiser, bool]] = []
        self._get_rng_state_tracker: Callable[[], Any] | None = None
        self._rng_tracker_name: str | None = None

    def set_tensor_parallel_group(self, tp_group: Group) -> None:
        """Sets the group over which the layer communicates."""
        self.tp_group = tp_group
        self.tp_group_initialized = True

    def _set_parallelism(self, tp_group: Group, tp_size: int) -> None:
        if tp_group is None:
            # Megatron makes layers before torch.distributed is there when it converts checkpoints.
            self.tp_size = tp_size
        else:
            self.tp_size = group_size(tp_group)
            self.set_tensor_parallel_group(tp_group)
        self.tp_rank = 0 if tp_group is None else dist.get_rank(tp_group)

    def _add_parameter(self, name: str, data: Tensor, init: Initialiser, tracked: bool) -> None:
        """Registers a parameter; `tracked` ones draw from the tracker's random numbers."""
        self.register_parameter(name, Parameter(data))
        self._initialisers.append((name, init, tracked))

    def reset_parameters(self, defer_init: bool = False) -> None:
        """Initialises all parameters; those on the meta device get memory first."""
        if defer_init:
            return
        for name, init, tracked in self._initialisers:
            parameter = getattr(self, name)
            if parameter.device.type == "meta":
                attributes = vars(parameter)
                parameter = Parameter(torch.empty_like(parameter, device="cpu"))
                vars(parameter).update(attributes)
                setattr(self, name, parameter)
            with torch.no_grad(), self._random_numbers(tracked):
                init(parameter)

    def _random_numbers(self, tracked: bool) -> contextlib.AbstractContextManager[Any]:
        if not tracked or self._get_rng_state_tracker is None:
            return contextlib.nullcontext()
        tracker = self._get_rng_state_tracker()
        if self._rng_tracker_name is None:
            return tracker.fork()
        return tracker.fork(self._rng_tracker_name)
