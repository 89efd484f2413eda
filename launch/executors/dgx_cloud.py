"""DGX Cloud and other Run:ai clusters, through their API.

NeMo-Run writes an executor down with all its fields, and so the application's secret; here it is
read when it is used. Its script exports variables without quotes; here they are in the request.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nemo_run as run

from launch.executors.job_request import JobRequest
from launch.executors.ranks import check_gpus, committed_code, container_environment


def dgx_cloud_executor(request: JobRequest) -> run.DGXCloudExecutor:
    """Build the executor of a workload.

    Raises:
        ValueError: the secret is not in the environment, or a node has fewer GPUs.
    """
    site = request.site
    assert site.dgx_cloud is not None
    assert site.container is not None
    check_gpus(site, request.processes_per_node)
    cluster = site.dgx_cloud
    if not os.environ.get(cluster.secret_variable):
        raise ValueError(
            f"site: {cluster.secret_variable} is not set; export the secret of the application "
            f"{cluster.client_id}."
        )
    environment = container_environment(site, request.code)
    return run.DGXCloudExecutor(
        base_url=cluster.url,
        kube_apiserver_url=cluster.kubernetes_url,
        client_id=cluster.client_id,
        client_secret=f"${cluster.secret_variable}",
        project_name=cluster.project,
        container_image=site.container.image,
        pvcs=[{"name": claim, "path": folder} for folder, claim in cluster.claims.items()],
        pvc_nemo_run_dir=cluster.job_folder,
        launched_from_cluster=True,
        nodes=request.num_nodes,
        gpus_per_node=request.processes_per_node,
        nprocs_per_node=request.processes_per_node,
        custom_spec={
            "environmentVariables": [
                {"name": name, "value": value} for name, value in environment.items()
            ]
        },
        packager=committed_code(request.code),
        launcher=request.launcher,
    )


def describe_workload(job: Any) -> str:
    """Return the script of the machines, and what the workload is asked for, as JSON."""
    executor = job._dryrun_info.request.executor
    script = Path(executor.experiment_dir, "torchrun_job.sh").read_text(encoding="utf-8")
    asked = {
        "project": executor.project_name,
        "image": executor.container_image,
        "nodes": executor.nodes,
        "gpus_per_node": executor.gpus_per_node,
        "claims": executor.pvcs,
        **executor.custom_spec,
    }
    return f"{json.dumps(asked, indent=2)}\n{script}"


_stock_token = run.DGXCloudExecutor.get_auth_token


def _token(executor: run.DGXCloudExecutor) -> str | None:
    """Get a token with the secret that the environment has under the name `$...`."""
    secret = executor.client_secret
    if not secret.startswith("$"):
        return _stock_token(executor)
    executor.client_secret = os.environ[secret[1:]]
    try:
        return _stock_token(executor)
    finally:
        executor.client_secret = secret


run.DGXCloudExecutor.get_auth_token = _token
