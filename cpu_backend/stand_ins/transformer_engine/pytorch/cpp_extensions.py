"""The one kernel that Megatron-Core imports by name; FP8 tensors to call it with do not exist."""

from typing import Any


def cast_to_fp8(*args: Any, **kwargs: Any) -> None:
    """Refuses to convert to FP8."""
    raise RuntimeError("FP8 tensors are not possible on the CPU backend; use bf16 or fp32.")
