"""`Tensor.type()` names CUDA types, but only to Megatron's and NeMo's optimizers.

They sort parameters by comparing `tensor.type()` with 'torch.cuda.FloatTensor' and the like, and
refuse every other answer. Everybody else gets the truth.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from cpu_backend.patches import PatchLedger

# The modules with such comparisons in megatron-core 0.14 and NeMo 2.5.
_CALLERS = ("megatron.core.optimizer.", "nemo.core.optim.")
_CONSTRUCTORS = (
    "BFloat16Tensor", "BoolTensor", "ByteTensor", "CharTensor", "DoubleTensor", "FloatTensor",
    "HalfTensor", "IntTensor", "LongTensor", "ShortTensor",
)  # fmt: skip


def _named_for_optimizers(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if args or kwargs or self.device.type != "cpu":
            return answer
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith(_CALLERS):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    return type_


def install(ledger: PatchLedger) -> None:
    """Wraps `Tensor.type` and lets `torch.cuda.FloatTensor([...])` and such make CPU tensors."""
    ledger.set_attribute(torch.Tensor, "type", _named_for_optimizers(torch.Tensor.type))
    for name in _CONSTRUCTORS:
        ledger.set_attribute(torch.cuda, name, getattr(torch, name))
