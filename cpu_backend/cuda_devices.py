"""CUDA device arguments mean the CPU.

Every function of torch that makes or moves a tensor is wrapped, and nothing else. A
`TorchFunctionMode` would do the same with less code, but it slows every operation on a tensor down,
and modes are thread-local: pin-memory and checkpoint threads would not have it.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _device as device_contexts

from cpu_backend.patches import PatchLedger

_CPU = torch.device("cpu")
_LIKE_FUNCTIONS = (
    "empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like",
)  # fmt: skip
_NEW_METHODS = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")


def names_cuda(device: Any) -> bool:
    """Returns whether a device argument means a GPU: a string, a `torch.device` or an index."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device == "cuda" or device.startswith("cuda:")
    return isinstance(device, int) and not isinstance(device, bool)


def on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a tensor constructor: a CUDA `device` becomes the CPU, `pin_memory` is dropped."""

    @functools.wraps(original)
    def construct(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            device = kwargs.get("device")
            if device is not None and names_cuda(device):
                kwargs["device"] = _CPU
            if kwargs.get("pin_memory"):
                # Pinning is for copies to a GPU and fails where there is none.
                kwargs["pin_memory"] = False
        return original(*args, **kwargs)

    return construct


def _moving_to_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Tensor.to`, whose first positional argument may be the device."""

    @functools.wraps(original)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and names_cuda(args[0]):
            args = (_CPU, *args[1:])
        device = kwargs.get("device")
        if device is not None and names_cuda(device):
            kwargs["device"] = _CPU
        return original(self, *args, **kwargs)

    return to


def _same_object(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for `.cuda()` and `.pin_memory()`: the object is where it should be."""
    return self


def _is_pinned(self: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
    return False


def _record_stream(self: torch.Tensor, stream: Any) -> None:
    """Streams order nothing on a CPU, so there is nothing to record."""


def _cpu_load(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if map_location is not None and names_cuda(map_location):
            map_location = _CPU
        return original(f, map_location, *args, **kwargs)

    return load


def _cpu_context(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps `with torch.device("cuda")` and `torch.set_default_device("cuda")`."""

    @functools.wraps(original)
    def initialise(self: Any, device: Any) -> None:
        original(self, _CPU if names_cuda(device) else device)

    return initialise


def _cpu_autocast(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def initialise(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    return initialise


def _cpu_autocast_state(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `torch.is_autocast_enabled` and such, whose answer for CUDA is that for the CPU."""

    @functools.wraps(original)
    def state(device_type: str = "cuda") -> Any:
        return original("cpu" if device_type == "cuda" else device_type)

    return state


def _wrap_constructors(ledger: PatchLedger) -> None:
    # Asked before anything is wrapped: the answer is cached, and `with torch.device("meta")`
    # compares the original functions with it.
    constructors = device_contexts._device_constructors()
    # TorchScript finds operators by the identity of the Python function that names them.
    script_operators = torch.jit._builtins._get_builtin_table()
    originals = {getattr(torch, name) for name in _LIKE_FUNCTIONS} | constructors
    for owner in (torch, torch.fft, torch.nested):
        for name, value in list(vars(owner).items()):
            if name.startswith("_") or not callable(value):
                continue
            try:
                wanted = value in originals
            except TypeError:  # unhashable, so not one of them
                continue
            if wanted:
                wrapper = on_cpu(value)
                ledger.set_attribute(owner, name, wrapper)
                if id(value) in script_operators:
                    ledger.set_item(script_operators, id(wrapper), script_operators[id(value)])


def install(ledger: PatchLedger) -> None:
    """Makes every way of naming a CUDA device mean the CPU."""
    _wrap_constructors(ledger)
    tensor = torch.Tensor
    for name in _NEW_METHODS:
        ledger.set_attribute(tensor, name, on_cpu(getattr(tensor, name)))
    ledger.set_attribute(tensor, "to", _moving_to_cpu(tensor.to))
    ledger.set_attribute(tensor, "cuda", _same_object)
    ledger.set_attribute(tensor, "pin_memory", _same_object)
    ledger.set_attribute(tensor, "is_pinned", _is_pinned)
    ledger.set_attribute(tensor, "record_stream", _record_stream)
    ledger.set_attribute(torch.nn.Module, "cuda", _same_object)
    ledger.set_attribute(torch, "load", _cpu_load(torch.load))
    context = device_contexts.DeviceContext
    ledger.set_attribute(context, "__init__", _cpu_context(context.__init__))
    autocast = torch.amp.autocast_mode.autocast
    ledger.set_attribute(autocast, "__init__", _cpu_autocast(autocast.__init__))
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        ledger.set_attribute(torch, name, _cpu_autocast_state(getattr(torch, name)))
