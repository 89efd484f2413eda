"""A run that hangs ends by itself, and shows where each rank was."""

import faulthandler
import sys
from typing import Any

import lightning.pytorch as pl
from nemo.lightning import io

_START_FACTOR = 2
"""The first step also starts readers and builds communicators."""


class HangWatchdog(pl.Callback, io.IOMixin):
    """Ends a rank in which no step ends for a while, with the stacks of all its threads in the log.

    When one rank hangs, the others wait for it in a collective operation, so each of them writes
    its stacks: the one whose stack differs is the one to look at. The timer runs in C, and does not
    need Python's lock.

    Args:
        minutes: a step, a validation batch and a checkpoint may each take so long.
    """

    def __init__(self, minutes: float = 30.0) -> None:
        if minutes <= 0:
            raise ValueError(f"minutes: {minutes} is no time to wait; allowed is more than 0.")
        self.minutes = minutes

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the first step."""
        self._wait(_START_FACTOR)

    def on_train_batch_end(self, *_: Any) -> None:
        """Wait for the next step."""
        self._wait()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """Wait for what comes next."""
        self._wait()

    def on_save_checkpoint(self, *_: Any) -> None:
        """Wait for the checkpoint."""
        self._wait()

    def on_train_end(self, *_: Any) -> None:
        """Wait no more."""
        faulthandler.cancel_dump_traceback_later()

    def on_exception(self, *_: Any) -> None:
        """Wait no more."""
        faulthandler.cancel_dump_traceback_later()

    def _wait(self, factor: int = 1) -> None:
        assert sys.__stderr__ is not None
        seconds = self.minutes * 60 * factor
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
