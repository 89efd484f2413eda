"""Jobs of a Slurm cluster."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import nemo_run as run

from launch.executors.job_request import JobRequest
from launch.executors.ranks import (
    backend_folder,
    check_gpus,
    committed_code,
    python_folder,
    rank_environment,
)
from launch.job_script import requeue_lines, setup_lines
from launch.requests import run_folder
from launch.site import Site
from launch.site_tables import Slurm

JOB_NAME_PREFIX = "vlm."
"""NeMo-Run finds a job's own name behind the last dot."""

_SRUN_ARGUMENTS = ("--label", "--kill-on-bad-exit=0", "--wait=30")
"""Each line has its rank; when one rank has ended, the others have time to write their stacks."""


def slurm_executor(request: JobRequest) -> run.SlurmExecutor:
    """Build the executor of a Slurm cluster.

    Slurm itself starts one process for each GPU, and no torchrun between: so exit codes and signals
    reach the ranks, and two jobs on a node cannot meet at a port.

    Raises:
        ValueError: the site's nodes have fewer GPUs, or a program is missing here.
    """
    site, code = request.site, request.code
    processes_per_node, folder = request.processes_per_node, run_folder(request.recipe)
    assert site.slurm is not None
    check_gpus(site, processes_per_node)
    environment = rank_environment(site, code)
    outside = PurePosixPath(folder)
    if site.container is not None:
        outside = site.container.outside(outside)
    setup = [
        setup_lines(code, environment, site.setup, backend_folder(site), _programs(site)),
        requeue_lines(
            str(outside), site.slurm.retries, site.slurm.exclude, doctor=_doctor(site, folder)
        ),
    ]
    executor = run.SlurmExecutor(
        **_allocation(site, site.slurm, processes_per_node),
        nodes=request.num_nodes,
        ntasks_per_node=processes_per_node,
        job_name_prefix=JOB_NAME_PREFIX,
        setup_lines="\n".join(setup),
        signal=f"B:USR1@{site.slurm.seconds_to_stop}",
        srun_args=[*_SRUN_ARGUMENTS, *site.slurm.srun_arguments],
        packager=committed_code(code),
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


def _doctor(site: Site, folder: Path) -> list[str]:
    """Return the arguments of the verb doctor in a job, or none where the site wants no doctor."""
    assert site.slurm is not None
    if not site.slurm.doctor:
        return []
    return ["--gpus", str(site.gpus_per_node), "--dir", str(folder)]


def _programs(site: Site) -> str | None:
    """Return the folder of this Python, where ranks on a shared file system can use it."""
    elsewhere = site.container is not None or site.is_remote
    return None if elsewhere else python_folder()


def _tunnel(slurm: Slurm) -> run.LocalTunnel | run.SSHTunnel:
    if slurm.ssh is None:
        return run.LocalTunnel(job_dir="")
    for program in ("ssh", "rsync"):
        if shutil.which(program) is None:
            raise ValueError(f"site: {program} is not installed; a site with [slurm.ssh] needs it.")
    return run.SSHTunnel(
        host=slurm.ssh.host,
        user=slurm.ssh.user,
        port=slurm.ssh.port,
        identity=slurm.ssh.identity,
        job_dir=slurm.ssh.job_folder,
    )


def describe_script(job: Any) -> str:
    """Return the script that sbatch gets."""
    return Path(job.executor.experiment_dir, f"{job.id}_sbatch.sh").read_text(encoding="utf-8")
