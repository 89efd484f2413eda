"""A Kubernetes cluster with Kubeflow's training operator.

NeMo-Run sends files to the cluster's storage, but neither the code nor a recipe's configuration,
and its script exports variables without quotes: here both are put into what is sent, and variables
into the job itself.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import nemo_run as run
from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

from launch.code_version import PROJECT_ROOT
from launch.executors.job_request import JobRequest
from launch.executors.ranks import check_gpus, container_environment
from launch.executors.yaml_text import yaml_text
from launch.job_script import CODE_FOLDER

_CONFIGURATIONS = "/nemo_run/configs"
_RUNNER = "nemo_run.core.runners.fdl_runner"


def kubeflow_executor(request: JobRequest) -> run.KubeflowExecutor:
    """Build the executor of a TrainJob, and write what is sent to the cluster's storage.

    Raises:
        ValueError: a program or the cluster's configuration is missing, or a node has fewer GPUs.
    """
    site = request.site
    assert site.kubeflow is not None
    assert site.container is not None
    check_gpus(site, request.processes_per_node)
    for program in ("kubectl", "rsync"):
        if shutil.which(program) is None:
            raise ValueError(f"site: {program} is not installed; jobs on Kubernetes need it.")
    cluster = site.kubeflow
    environment = container_environment(site, request.code) | {"PYTHONPATH": CODE_FOLDER}
    variables: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in environment.items()
    ]
    for name, place in cluster.secrets.items():
        secret, _, key = place.partition("/")
        reference = {"secretKeyRef": {"name": secret, "key": key}}
        variables.append({"name": name, "valueFrom": reference})
    return _build(
        image=site.container.image,
        namespace=cluster.namespace,
        runtime_ref=cluster.runtime,
        num_nodes=request.num_nodes,
        gpus_per_node=request.processes_per_node,
        env_list=variables,
        image_pull_secrets=list(cluster.image_pull_secrets),
        pod_spec_overrides=dict(cluster.pod),
        workdir_pvc=cluster.claim,
        workdir_pvc_path=cluster.folder,
        workdir_local_path=str(_write_what_is_sent(request)),
        train_job_basename=request.name,
        volumes=[
            {"name": "storage", "persistentVolumeClaim": {"claimName": cluster.claim}},
            # A pod has 64 MiB of shared memory, which is too little for readers of data.
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
        volume_mounts=[
            {"name": "storage", "mountPath": cluster.folder},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
        launcher=request.launcher,
    )


def kubeflow_task(request: JobRequest) -> run.Script:
    """Return the call of the recipe that was sent."""
    arguments = ["-n", request.name, f"{_CONFIGURATIONS}/{request.name}"]
    return run.Script(path=_RUNNER, m=True, entrypoint="python", args=arguments)


def describe_train_job(job: Any) -> str:
    """Return the TrainJob as YAML, and the script of its pods."""
    request = job._dryrun_info.request
    executor = request.executor
    body = executor.get_job_body(executor._trainjob_name(request.name), request.cmd)
    script = Path(executor.job_dir, "launch.sh").read_text(encoding="utf-8")
    return f"{yaml_text(body)}---\n{script}"


def _build(**options: Any) -> run.KubeflowExecutor:
    try:
        from kubernetes.config import ConfigException
    except ImportError as error:
        raise ValueError(
            "site: the Python package kubernetes is not installed; `pip install kubernetes`."
        ) from error
    try:
        return run.KubeflowExecutor(**options)
    except ConfigException as error:
        raise ValueError(
            f"site: no configuration of a Kubernetes cluster was found ({error}); set KUBECONFIG."
        ) from error


def _write_what_is_sent(request: JobRequest) -> Path:
    """Write code and configuration below a folder, which is `/nemo_run` for the ranks."""
    folder = request.folder / request.name
    code = folder / Path(CODE_FOLDER).name
    code.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", request.code.shipped], cwd=PROJECT_ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(code, filter="data")
    configuration = folder / Path(_CONFIGURATIONS).name / request.name
    configuration.parent.mkdir()
    configuration.write_text(ZlibJSONSerializer().serialize(request.recipe), encoding="utf-8")
    return folder
