"""Activation offloading: activations are in the CPU's memory already."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def get_cpu_offload_context(
    enabled: bool = False, *args: Any, **kwargs: Any
) -> tuple[contextlib.AbstractContextManager[None], Callable[[Tensor], Tensor]]:
    """Returns a context that does nothing and a synchronisation that returns its argument."""
    return contextlib.nullcontext(), _unchanged
