"""A container on this machine, through Docker."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import nemo_run as run

from launch.executors.job_request import JobRequest
from launch.executors.ranks import check_gpus, committed_code, container_environment
from launch.requests import check_one_machine


def docker_executor(request: JobRequest) -> run.DockerExecutor:
    """Build the executor of a container with the site's mounts.

    Raises:
        ValueError: more than one machine, or more ranks than it has GPUs.
    """
    site = request.site
    assert site.container is not None
    check_one_machine(request.recipe)
    check_gpus(site, request.processes_per_node)
    return run.DockerExecutor(
        container_image=site.container.image,
        volumes=list(site.container.mounts),
        ntasks_per_node=request.processes_per_node,
        num_gpus=request.processes_per_node if site.gpus_per_node else None,
        shm_size=site.docker.shm_size,
        ulimits=list(site.docker.ulimits),
        network=site.docker.network,
        env_vars=container_environment(site, request.code),
        packager=committed_code(request.code),
        launcher=request.launcher,
    )


def describe_container(job: Any) -> str:
    """Return what Docker is asked for, as JSON."""
    asked: dict[str, Any] = {}

    def keep(image: str, command: str, **options: Any) -> None:
        asked.update({"image": image, "command": command}, **options)

    client = SimpleNamespace(
        containers=SimpleNamespace(run=keep), networks=SimpleNamespace(create=lambda **_: None)
    )
    docker_request = job._dryrun_info.request
    for container in docker_request.containers:
        container.run(client=client, id=docker_request.id)
    return json.dumps(asked, indent=2)
