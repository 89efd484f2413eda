"""The one place that decides between CUDA and the CPU backend."""

from __future__ import annotations

import os


def activate() -> bool:
    """Switch the CPU backend on when this machine has no GPU. Call before NeMo is imported.

    Returns:
        Whether the CPU backend is on.
    """
    import torch

    import cpu_backend

    if torch.cuda.is_available():
        return False
    # Several processes on a few cores: threads that wait for each other cost more than they give.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cpu_backend.enable()
    return True


def child_environment() -> dict[str, str]:
    """Return what a child process needs to run on the same backend."""
    import cpu_backend

    return cpu_backend.child_environment() if cpu_backend.is_enabled() else {}
