"""Processes of this machine."""

from __future__ import annotations

import os

import nemo_run as run

from launch import backend
from launch.executors.ranks import python_folder
from launch.site import LOCAL, Site


def local_executor(num_processes: int, site: Site = LOCAL) -> run.LocalExecutor:
    """Build the executor of this machine.

    Args:
        num_processes: ranks; torchrun starts them when there is more than one.
        site: has the environment of the ranks.
    """
    return run.LocalExecutor(
        ntasks_per_node=num_processes,
        launcher="torchrun" if num_processes > 1 else None,
        env_vars={"PATH": _path_with_this_python()}
        | site.rank_environment
        | backend.child_environment(),
    )


def _path_with_this_python() -> str:
    """NeMo-Run starts `python`, which must be this one, also where no environment is activated."""
    return os.pathsep.join([python_folder(), os.environ.get("PATH", "")])
