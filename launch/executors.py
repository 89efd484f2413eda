"""NeMo-Run executors. For now: this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nemo_run as run

from launch import backend


def local_executor(num_processes: int) -> run.LocalExecutor:
    """Build the executor of this machine.

    Args:
        num_processes: ranks; torchrun starts them when there is more than one.
    """
    return run.LocalExecutor(
        ntasks_per_node=num_processes,
        launcher="torchrun" if num_processes > 1 else None,
        env_vars={"PATH": _path_with_this_python()} | backend.child_environment(),
    )


def _path_with_this_python() -> str:
    """NeMo-Run starts `python`, which must be this one, also where no environment is activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
