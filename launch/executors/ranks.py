"""What the ranks of a site need on every scheduler: environment, code, GPUs."""

from __future__ import annotations

import sys
from pathlib import Path

import nemo_run as run

from cpu_backend.environment import SITE_DIRECTORY
from launch import backend
from launch.code_version import PROJECT_ROOT, CodeVersion
from launch.job_script import CODE_FOLDER
from launch.site import Site
from recipes.steps_file import CODE_VARIABLE


def rank_environment(site: Site, code: CodeVersion) -> dict[str, str]:
    """Return the variables of every rank, but for PYTHONPATH."""
    environment = {CODE_VARIABLE: str(code)} | site.rank_environment
    return environment if site.gpus_per_node else backend.job_environment() | environment


def backend_folder(site: Site) -> str | None:
    """Return what Python needs beside the code where there are no GPUs, as ranks see it."""
    if site.gpus_per_node:
        return None
    return f"{CODE_FOLDER}/{SITE_DIRECTORY.resolve().relative_to(PROJECT_ROOT)}"


def container_environment(site: Site, code: CodeVersion) -> dict[str, str]:
    """Return all variables of ranks whose image may have none of ours."""
    folder = backend_folder(site)
    return rank_environment(site, code) | ({} if folder is None else {"PYTHONPATH": folder})


def committed_code(code: CodeVersion) -> run.GitArchivePackager:
    """Build what packs the code."""
    return run.GitArchivePackager(
        basepath=str(PROJECT_ROOT), ref=code.shipped, include_submodules=False
    )


def check_gpus(site: Site, processes_per_node: int) -> None:
    """Refuse more ranks than a node has GPUs.

    Raises:
        ValueError: there are more.
    """
    if site.gpus_per_node and processes_per_node > site.gpus_per_node:
        raise ValueError(
            f"num_gpus_per_node: {processes_per_node} is more than the {site.gpus_per_node} GPUs "
            "that a node of this site has."
        )


def python_folder() -> str:
    """Return the folder of this Python."""
    return str(Path(sys.executable).parent)
