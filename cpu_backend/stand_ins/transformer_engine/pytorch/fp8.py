"""FP8 contexts: nothing when FP8 is off, a clear error when it is on."""

import contextlib
from collections.abc import Iterator
from typing import Any

_MESSAGE = "FP8 is not possible on the CPU backend; use bf16 or fp32 (fp8=None), or a Hopper GPU."


def _refuse(enabled: bool) -> None:
    if enabled:
        raise RuntimeError(_MESSAGE)


@contextlib.contextmanager
def fp8_autocast(enabled: bool = True, **settings: Any) -> Iterator[None]:
    """Does nothing when not enabled.

    Raises:
        RuntimeError: FP8 was asked for.
    """
    _refuse(enabled)
    yield


@contextlib.contextmanager
def fp8_model_init(enabled: bool = True, **settings: Any) -> Iterator[None]:
    """Does nothing when not enabled.

    Raises:
        RuntimeError: FP8 parameters were asked for.
    """
    _refuse(enabled)
    yield


class FP8GlobalStateManager:
    """What Megatron-Core asks about FP8: it is always off."""

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        """Returns False."""
        return False

    @classmethod
    def get_fp8_recipe(cls) -> None:
        """Returns None."""

    @classmethod
    def reset(cls) -> None:
        """There is no state to reset."""
