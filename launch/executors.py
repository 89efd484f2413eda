"""NeMo-Run executors: this machine, and the sites' clusters."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

import nemo_run as run

from cpu_backend.environment import SITE_DIRECTORY
from launch import backend
from launch.code_version import PROJECT_ROOT, CodeVersion
from launch.job_script import CODE_FOLDER, requeue_lines, setup_lines
from launch.site import LOCAL, Site, Slurm

JOB_NAME_PREFIX = "vlm."
"""NeMo-Run finds a job's own name behind the last dot."""

_SRUN_ARGUMENTS = ("--label", "--kill-on-bad-exit=0", "--wait=30")
"""Each line has its rank; when one rank has ended, the others have time to write their stacks."""


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
        | site.environment
        | backend.child_environment(),
    )


def slurm_executor(
    site: Site, num_nodes: int, processes_per_node: int, code: CodeVersion, run_folder: Path
) -> run.SlurmExecutor:
    """Build the executor of a Slurm cluster.

    Slurm itself starts one process for each GPU, and no torchrun between: so exit codes and signals
    reach the ranks, and two jobs on a node cannot meet at a port.

    Args:
        site: of the scheduler slurm.
        num_nodes: machines.
        processes_per_node: ranks on each.
        code: to ship.
        run_folder: of the recipe, as its ranks see it.

    Raises:
        ValueError: the site's nodes have fewer GPUs.
    """
    assert site.slurm is not None
    if site.gpus_per_node and processes_per_node > site.gpus_per_node:
        raise ValueError(
            f"num_gpus_per_node: {processes_per_node} is more than the {site.gpus_per_node} GPUs "
            "that a node of this site has."
        )
    python_path = None
    environment = dict(site.environment)
    if not site.gpus_per_node:
        python_path = f"{CODE_FOLDER}/{SITE_DIRECTORY.resolve().relative_to(PROJECT_ROOT)}"
        environment = backend.job_environment() | environment
    outside = PurePosixPath(run_folder)
    if site.container is not None:
        outside = site.container.outside(outside)
    setup = [
        setup_lines(code, environment, site.setup, python_path, _programs(site)),
        requeue_lines(
            str(outside), site.slurm.retries, site.slurm.exclude, doctor=_doctor(site, run_folder)
        ),
    ]
    executor = run.SlurmExecutor(
        **_allocation(site, site.slurm, processes_per_node),
        nodes=num_nodes,
        ntasks_per_node=processes_per_node,
        job_name_prefix=JOB_NAME_PREFIX,
        setup_lines="\n".join(setup),
        signal=f"B:USR1@{site.slurm.seconds_to_stop}",
        srun_args=[*_SRUN_ARGUMENTS, *site.slurm.srun_arguments],
        packager=run.GitArchivePackager(
            basepath=str(PROJECT_ROOT), ref=code.shipped, include_submodules=False
        ),
        tunnel=_tunnel(site.slurm),
        poll_estimated_start_time=False,
    )
    if site.container is not None:
        executor.container_image = site.container.image
        executor.container_mounts = list(site.container.mounts)
        # Without this the image's own values win over the site's.
        executor.container_env = [*environment, *site.pass_environment]
    return executor


def _allocation(site: Site, slurm: Slurm, processes_per_node: int) -> dict[str, object]:
    asked: dict[str, object] = {
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "time": slurm.time,
        "constraint": slurm.constraint,
        "exclude": ",".join(slurm.exclude) or None,
        "exclusive": slurm.exclusive or None,
        # A job whose predecessor failed would wait for ever.
        "additional_parameters": {"kill_on_invalid_dep": "yes"} | slurm.additional,
    }
    if site.gpus_per_node and slurm.gpus_flag == "gpus_per_node":
        asked["gpus_per_node"] = processes_per_node
    elif site.gpus_per_node and slurm.gpus_flag == "gres":
        asked["gres"] = f"gpu:{processes_per_node}"
    return asked


def _doctor(site: Site, run_folder: Path) -> list[str]:
    """Return the arguments of the verb doctor in a job, or none where the site wants no doctor."""
    assert site.slurm is not None
    if not site.slurm.doctor:
        return []
    return ["--gpus", str(site.gpus_per_node), "--dir", str(run_folder)]


def _programs(site: Site) -> str | None:
    """Return the folder of this Python, where ranks on a shared file system can use it."""
    elsewhere = site.container is not None or site.is_remote
    return None if elsewhere else _python_folder()


def _tunnel(slurm: Slurm) -> run.LocalTunnel | run.SSHTunnel:
    if slurm.ssh is None:
        return run.LocalTunnel(job_dir="")
    return run.SSHTunnel(
        host=slurm.ssh.host,
        user=slurm.ssh.user,
        port=slurm.ssh.port,
        identity=slurm.ssh.identity,
        job_dir=slurm.ssh.job_folder,
    )


def _path_with_this_python() -> str:
    """NeMo-Run starts `python`, which must be this one, also where no environment is activated."""
    return os.pathsep.join([_python_folder(), os.environ.get("PATH", "")])


def _python_folder() -> str:
    return str(Path(sys.executable).parent)
