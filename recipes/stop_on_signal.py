"""A run that is asked to stop ends with a checkpoint, and says that it is not finished."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from nemo.lightning import io

INTERRUPTED_STATUS = 75
"""Exit status of a run that was stopped before its end and can be resumed (EX_TEMPFAIL)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Slurm sends them before it preempts a job or its time is over."""


class StopOnSignal(pl.Callback, io.IOMixin):
    """Stops after the step in which any rank has got a signal; the checkpoint rule then saves.

    The ranks agree at the end of each step, as a signal reaches them at different moments. A run
    that was stopped before its last step ends with status 75: who waits for it knows that there is
    more to do. (NeMo's PreemptionCallback listens on rank 0 alone and ends with 0, like a finished
    run.)
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._stopped = False
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen; Lightning's own handlers would end the run at once."""
        self._received, self._stopped = None, False
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if one of the ranks is asked to."""
        if self._any_rank(pl_module.device) and trainer.global_step < trainer.max_steps:
            self._stopped = trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening."""
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening."""
        self._restore()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the process: everything has been saved.

        Raises:
            SystemExit: the run was stopped.
        """
        if self._stopped:
            logging.warning(
                f"stopped by a signal after {trainer.global_step} of {trainer.max_steps} steps; "
                "the same command resumes it."
            )
            raise SystemExit(INTERRUPTED_STATUS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def _any_rank(self, device: torch.device) -> bool:
        received = torch.tensor(float(self._received is not None), device=device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        return bool(received.item())

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
