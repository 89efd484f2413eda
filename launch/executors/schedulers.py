"""The schedulers that take jobs, by the name that a site gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nemo_run as run

from launch.executors.dgx_cloud import describe_workload, dgx_cloud_executor
from launch.executors.docker import describe_container, docker_executor
from launch.executors.job_request import JobRequest
from launch.executors.kubeflow import describe_train_job, kubeflow_executor, kubeflow_task
from launch.executors.skypilot import describe_task, skypilot_executor
from launch.executors.slurm import describe_script, slurm_executor


def _recipe(request: JobRequest) -> run.Partial:
    return request.recipe


@dataclass(frozen=True)
class Scheduler:
    """How a scheduler takes a job.

    Attributes:
        executor: builds NeMo-Run's executor.
        describe: says what a job of a dry run would be.
        detaches: whether it goes on with a job when this process has ended.
        chains: whether it starts one job after the other by itself.
        task: what NeMo-Run starts.
    """

    executor: Callable[[JobRequest], run.Executor]
    describe: Callable[[Any], str]
    detaches: bool = True
    chains: bool = False
    task: Callable[[JobRequest], run.Partial | run.Script] = _recipe


SCHEDULERS = {
    "docker": Scheduler(docker_executor, describe_container, detaches=False),
    "slurm": Scheduler(slurm_executor, describe_script, chains=True),
    "skypilot": Scheduler(skypilot_executor, describe_task),
    "kubeflow": Scheduler(
        kubeflow_executor, describe_train_job, detaches=False, task=kubeflow_task
    ),
    "dgx_cloud": Scheduler(dgx_cloud_executor, describe_workload),
}
