"""A run that is asked to stop ends with a checkpoint, and says that it is not finished."""

import signal
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from nemo.lightning import io
from nemo.utils import logging

from recipes.child_signals import STOP_SIGNALS, shield_forked_processes

INTERRUPTED_STATUS = 75
"""Exit status of a run that was stopped before its end and can be resumed (EX_TEMPFAIL)."""


class StopOnSignal(pl.Callback, io.IOMixin):
    """Stops after the step in which any rank has got a signal; the checkpoint rule then saves.

    A scheduler signals all processes of a job. Those that a rank starts (readers of data, writers
    of checkpoints) inherit that the signals are blocked, and so work on until all is saved; those
    that are forked still end when the rank ends them.

    The ranks agree at the end of each step, as a signal reaches them at different moments. A run
    that was stopped before its last step ends with status 75: who waits for it knows that there is
    more to do. (NeMo's PreemptionCallback listens on rank 0 alone and ends with 0, like a finished
    run.)
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._stopped = False
        self._handlers: dict[int, Any] = {}
        self._mask: set[Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen, before readers are started, and before Lightning sets handlers of its own."""
        if stage == "fit" and self._mask is None:
            self._received, self._stopped = None, False
            self._handlers = self._listen()
            shield_forked_processes()
            resource_tracker.ensure_running()  # which unblocks SIGTERM
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which would end the run without a checkpoint."""
        self._listen()
        trainer._signal_connector.received_sigterm = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if one of the ranks is asked to."""
        if self._any_rank(pl_module.device) and trainer.global_step < trainer.max_steps:
            self._stopped = trainer.should_stop = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening."""
        self._restore()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening, and end the process if it was asked to: everything has been saved.

        Raises:
            SystemExit: the run was stopped.
        """
        self._restore()
        if self._stopped:
            dist.barrier()  # whoever ends first may have the others killed: all have saved
            logging.warning(
                f"stopped by a signal after {trainer.global_step} of {trainer.max_steps} steps; "
                "the same command resumes it."
            )
            raise SystemExit(INTERRUPTED_STATUS)

    def _listen(self) -> dict[int, Any]:
        """Return the handlers that were there."""
        return {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def _any_rank(self, device: torch.device) -> bool:
        # A thread from before `setup` may take a signal and call `_note`; else it is pending.
        asked = self._received is not None or bool(signal.sigpending() & set(STOP_SIGNALS))
        received = torch.tensor(float(asked), device=device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        return bool(received.item())

    def _restore(self) -> None:
        if self._mask is not None:
            while signal.sigpending() & set(STOP_SIGNALS):
                signal.sigwait(STOP_SIGNALS)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._mask = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
