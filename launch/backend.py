"""The one place that decides between CUDA and the CPU backend."""

from __future__ import annotations

import ctypes
import os


def activate(cpu: bool = False) -> bool:
    """Switch the CPU backend on when this machine has no GPU. Call before NeMo is imported.

    Args:
        cpu: also on a machine with a GPU. Conversions need none, and compare in fp32.

    Returns:
        Whether the CPU backend is on.
    """
    import cpu_backend

    if not (cpu or cpu_backend.is_enabled()) and _has_gpu():
        return False
    # Several processes on a few cores: threads that wait for each other cost more than they give.
    # torch reads it when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cpu_backend.enable()
    return True


def _has_gpu() -> bool:
    """Ask the driver, without importing torch."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


def child_environment() -> dict[str, str]:
    """Return what a child process needs to run on the same backend."""
    import cpu_backend

    return cpu_backend.child_environment() if cpu_backend.is_enabled() else {}


def job_environment() -> dict[str, str]:
    """Return what ranks on machines without GPUs need, beside the backend in PYTHONPATH."""
    import cpu_backend

    environment = cpu_backend.child_environment()
    for name in ("PATH", "PYTHONPATH"):  # of this machine
        environment.pop(name)
    environment.setdefault("OMP_NUM_THREADS", "1")
    return environment
