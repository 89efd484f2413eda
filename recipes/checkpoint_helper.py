"""The process in which Megatron-Core collects what the writers of a checkpoint report."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.managers import SyncManager

from recipes.child_signals import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1


def start_checkpoint_helper() -> None:
    """Start the process, unless this rank has one, so that it ends when the rank does.

    The one that Megatron-Core starts by itself outlives a rank that is killed: it keeps a gigabyte
    of memory, and the rank's output open, so that Slurm takes the rank for alive.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        # A signal to the whole job must not end it before the last checkpoint is written.
        resource_tracker.ensure_running()  # which unblocks SIGTERM
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        with _without_main_module():
            manager.start(initializer=_end_with, initargs=(os.getpid(),))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        filesystem_async._results_queue = manager.Queue()
        filesystem_async._manager = manager  # it ends when nobody holds it


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Let a new process not import what this one runs.

    It would import all of NeMo: a quarter of a minute before the first checkpoint, and a gigabyte
    for each rank for as long as the run lasts.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent has ended. Linux only."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was faster
        os._exit(1)
