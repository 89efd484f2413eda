"""Machines of a cloud or a Kubernetes cluster, through SkyPilot."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import nemo_run as run

from launch.executors.job_request import JobRequest
from launch.executors.ranks import check_gpus, committed_code, container_environment
from launch.executors.yaml_text import yaml_text


def skypilot_executor(
    request: JobRequest,
) -> run.SkypilotExecutor | run.SkypilotJobsExecutor:
    """Build the executor of a task of SkyPilot.

    Raises:
        ValueError: SkyPilot is not installed, or a node has fewer GPUs.
    """
    site = request.site
    assert site.skypilot is not None
    assert site.gpu is not None
    check_gpus(site, request.processes_per_node)
    if find_spec("sky") is None:
        raise ValueError(
            "site: SkyPilot is not installed; install it with `pip install 'skypilot[kubernetes]'`"
            ", or with the name of a cloud."
        )
    sky = site.skypilot
    options: dict[str, Any] = {
        "infra": sky.infra,
        "gpus": site.gpu.upper(),
        "gpus_per_node": request.processes_per_node,
        "num_nodes": request.num_nodes,
        "use_spot": sky.use_spot or None,
        "network_tier": sky.network_tier,
        "disk_size": sky.disk_size,
        "storage_mounts": {
            folder: {"source": bucket, "mode": "MOUNT"} for folder, bucket in sky.storage.items()
        },
        "setup": "\n".join(site.setup) or None,
        "env_vars": container_environment(site, request.code),
        "packager": committed_code(request.code),
        "launcher": request.launcher,
    }
    if site.container is not None:
        options["container_image"] = f"docker:{site.container.image}"
    if sky.managed:
        return run.SkypilotJobsExecutor(**options)
    return run.SkypilotExecutor(**options, idle_minutes_to_autostop=sky.idle_minutes, autodown=True)


def describe_task(job: Any) -> str:
    """Return the task that SkyPilot gets, as YAML."""
    task = job._dryrun_info.request.task
    return yaml_text(task.to_yaml_config())
