"""What the processes that a rank forks do with the signals that a scheduler sends to all."""

from __future__ import annotations

import os
import signal
import threading

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Slurm sends them before it preempts a job or its time is over."""

_registered = False


def shield_forked_processes() -> None:
    """Let processes that this one forks from now on end by its own SIGTERM alone.

    They must have been forked with the signals blocked. Readers of data and writers of checkpoints
    so go on until the rank has saved, and still end when it ends them.
    """
    global _registered
    if not _registered:
        os.register_at_fork(after_in_child=_watch_for_the_parents_signal)
        _registered = True


def _watch_for_the_parents_signal() -> None:
    if set(STOP_SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        threading.Thread(target=_wait, args=(os.getppid(),), daemon=True).start()


def _wait(parent: int) -> None:
    while True:
        info = signal.sigwaitinfo(STOP_SIGNALS)
        if info.si_pid == parent and info.si_signo == signal.SIGTERM:
            os._exit(128 + signal.SIGTERM)
