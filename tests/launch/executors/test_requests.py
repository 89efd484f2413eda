"""What Docker, DGX Cloud and Kubernetes are really sent, by servers of their kind on loopback."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.site import Site
from tests.launch.api_server import ApiServer
from tests.launch.kubernetes import use_kubernetes

VALUES = {"lower_Case": 'it is "so" $HOME', "NCCL_DEBUG": "WARN"}
SITE = {"gpu": "h100", "gpus_per_node": 8, "environment": VALUES, "container": {"image": "nemo:1"}}


@pytest.fixture
def submit(nemo, monkeypatch, tmp_path):
    """Submits a recipe to a site with NeMo-Run's own files in a folder of the test."""
    from launch.factory import build_stages
    from launch.submit import submit

    home = tmp_path / "nemo_run_home"
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(home))
    for place, name in (
        ("core.execution.docker", "DOCKER_JOB_DIRS"),
        ("run.torchx_backend.schedulers.dgxcloud", "DGX_JOB_DIRS"),
        ("run.torchx_backend.schedulers.kubeflow", "KUBEFLOW_JOB_DIRS"),
    ):
        module = importlib.import_module(f"nemo_run.{place}")
        monkeypatch.setattr(module, name, str(tmp_path / f"{name}.json"))
    for check in ("check_files", "check_data_files"):
        monkeypatch.setattr(f"launch.submit.{check}", lambda recipe: None)

    def run(folder, num_nodes, stages="sft", **tables):
        recipes = build_stages(
            f"nvila(size='15b', num_nodes={num_nodes}, dir='{folder}')",
            stages,
            [f"data.train_paths={folder}/sft.jsonl"],
        )
        with open(os.devnull) as nothing:
            monkeypatch.setattr("sys.stdin", nothing)
            return submit(recipes, Site.model_validate(SITE | tables), allow_dirty=True)

    run.home = home
    return run


def texts_below(*folders):
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if path.is_file() and "code" not in path.parts:
                yield path.read_bytes()


@pytest.fixture
def docker(monkeypatch):
    """A Docker daemon whose containers end at once, with this exit status; gives its requests."""
    servers = []

    def start(exit_status):
        def create(content):
            (folder,) = [bind.partition(":")[0] for bind in content["HostConfig"]["Binds"][1:]]
            assert (Path(folder) / "code" / "launch" / "site.py").is_file()
            assert list((Path(folder) / "configs").glob("*_fn_or_script"))
            status = {"id": "x", "exit_code": str(exit_status)}
            (Path(folder) / f"status_{content['Hostname']}.out").write_text(json.dumps(status))
            return 201, {"Id": "c"}

        answers = {
            "GET .*/version": (200, {"ApiVersion": "1.43"}),
            "POST .*/images/create.*": (200, {"status": "there"}),
            "GET .*/images/nemo:1/json": (200, {"Id": "sha256:1", "RepoTags": ["nemo:1"]}),
            "POST .*/containers/create.*": create,
            "POST .*/containers/c/start": (204, None),
            "GET .*/containers/c/json": (200, {"Id": "c", "State": {"Status": "running"}}),
            "GET .*/containers/json.*": (200, []),
        }
        servers.append(ApiServer(answers))
        servers[0].__enter__()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{servers[0].address}")
        return servers[0].requests

    yield start
    for server in servers:
        server.__exit__()


def containers_of(requests):
    return [content for _, path, content in requests if "containers/create" in path]


@pytest.mark.parametrize("exit_status", [0, 1])
def test_a_container_is_started_by_docker(exit_status, docker, submit, tmp_path):
    requests = docker(exit_status)
    container = SITE["container"] | {"mounts": [f"{tmp_path}:{tmp_path}"]}
    done = submit(tmp_path, 1, scheduler="docker", container=container)
    assert done["failed"] is bool(exit_status)
    (created,) = containers_of(requests)
    assert [path for _, path, _ in requests if path.endswith("/c/start")]
    assert VALUES.items() <= dict(one.split("=", 1) for one in created["Env"]).items()
    assert (created["Image"], created["WorkingDir"]) == ("nemo:1", "/nemo_run/code")
    command = " ".join(created["Cmd"])
    assert "torchrun " in command
    assert "--nproc-per-node 8" in command
    assert "fdl_runner -n sft /nemo_run/configs/sft_fn_or_script" in command
    host = created["HostConfig"]
    assert host["Binds"][0] == f"{tmp_path}:{tmp_path}"
    assert (host["ShmSize"], host["NetworkMode"]) == (64 * 2**30, "host")
    assert host["DeviceRequests"][0]["Count"] == 8


@pytest.mark.parametrize(("exit_status", "started"), [(0, 2), (1, 1)])
def test_a_stage_is_not_started_when_the_one_before_has_failed(
    exit_status, started, docker, submit, tmp_path
):
    requests = docker(exit_status)
    container = SITE["container"] | {"mounts": [f"{tmp_path}:{tmp_path}"]}
    done = submit(tmp_path, 1, "align,sft", scheduler="docker", container=container)
    assert done["failed"] is bool(exit_status)
    assert len(containers_of(requests)) == started


def test_a_workload_is_created_on_dgx_cloud_and_its_secret_is_written_nowhere(
    submit, monkeypatch, tmp_path
):
    answers = {
        "POST /api/v1/token": (200, {"accessToken": "t"}),
        "GET /api/v1/org-unit/projects": (
            200,
            {"projects": [{"name": "vision", "id": "p", "clusterId": "c"}]},
        ),
        "POST /api/v1/workloads/distributed": (
            202,
            {"workloadId": "w1", "actualPhase": "Pending"},
        ),
    }
    monkeypatch.setenv("RUNAI_CLIENT_SECRET", "very-hidden")
    with ApiServer(answers) as server:
        table = {
            "url": f"http://{server.address}/api/v1",
            "kubernetes_url": f"http://{server.address}",
            "project": "vision",
            "client_id": "me",
            "claims": {"/workspace": "storage"},
            "job_folder": "/workspace/jobs",
        }
        done = submit("/workspace/runs", 12, scheduler="dgx_cloud", dgx_cloud=table)
    assert "w1" in done["jobs"]["sft"]
    assert {content["clientSecret"] for content in server.of("POST", "/api/v1/token")} == {
        "very-hidden"
    }
    (workload,) = server.of("POST", "/api/v1/workloads/distributed")
    assert (workload["projectId"], workload["clusterId"]) == ("p", "c")
    specification = workload["spec"]
    assert (specification["image"], specification["numWorkers"]) == ("nemo:1", 12)
    assert specification["compute"]["gpuDevicesRequest"] == 8
    assert specification["storage"] == {"pvc": [{"name": "storage", "path": "/workspace"}]}
    variables = {one["name"]: one["value"] for one in specification["environmentVariables"]}
    assert VALUES.items() <= variables.items()
    job_folder = Path(done["experiment"]) / "sft"
    place = job_folder.relative_to(submit.home)
    assert specification["command"] == f"/bin/bash /workspace/jobs/{place}/launch_script.sh"
    assert (job_folder / "code" / "launch" / "site.py").is_file()
    assert (job_folder / "launch_script.sh").is_file()
    written = list(texts_below(submit.home)) + [(tmp_path / "DGX_JOB_DIRS.json").read_bytes()]
    assert len(written) > 5
    assert not [text for text in written if b"very-hidden" in text]


def test_a_missing_secret_is_refused(submit, monkeypatch, tmp_path):
    monkeypatch.delenv("RUNAI_CLIENT_SECRET", raising=False)
    table = {
        "url": "http://x",
        "kubernetes_url": "http://x",
        "project": "p",
        "client_id": "me",
        "claims": {"/workspace": "storage"},
        "job_folder": "/workspace/jobs",
    }
    with pytest.raises(
        ValueError, match="RUNAI_CLIENT_SECRET is not set; .* of the application me"
    ):
        submit("/workspace/runs", 1, scheduler="dgx_cloud", dgx_cloud=table)


KUBECTL = """\
#!{python}
import shutil, sys
if sys.argv[1] == "cp":
    shutil.copytree(sys.argv[-2], {target!r}, dirs_exist_ok=True)
"""


def test_the_environment_of_skypilot(nemo, tmp_path):
    from launch.code_version import CodeVersion
    from launch.executors.job_request import JobRequest
    from launch.executors.skypilot import skypilot_executor

    table = {"infra": "k8s", "storage": {"/data": "s3://bucket"}, "managed": False}
    site = Site.model_validate(SITE | {"scheduler": "skypilot", "skypilot": table})
    recipe = SimpleNamespace(trainer=SimpleNamespace(num_nodes=2, devices=4))
    executor = skypilot_executor(JobRequest(recipe, site, CodeVersion("a", "b"), tmp_path))
    executor.assign("sft_1", str(tmp_path), "sft", "sft")
    task = executor.to_task("sft", ["true"]).to_yaml_config()
    assert VALUES.items() <= task["envs"].items()
    assert task["resources"]["accelerators"] == {"H100": 4}
    assert task["resources"]["infra"] == "kubernetes"
    assert (executor.idle_minutes_to_autostop, executor.autodown) == (10, True)


def test_a_train_job_is_created_with_code_and_configuration_in_its_storage(
    submit, monkeypatch, tmp_path
):
    if shutil.which("rsync") is None:
        reason = "needs rsync (Debian: apt-get install rsync)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    jobs = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/vision/trainjobs"
    pods = "/api/v1/namespaces/vision/pods"
    running = {"kind": "Pod", "metadata": {"name": "mover"}, "status": {"phase": "Running"}}
    answers = {
        f"POST {pods}": (201, running),
        f"GET {pods}\\?.*watch=True.*": (200, {"type": "ADDED", "object": running}),
        f"GET {pods}\\?.*": (200, {"kind": "PodList", "items": []}),
        f"POST {jobs}": lambda content: (201, content),
        f"GET {jobs}/.*": (200, {"status": {"jobsStatus": [{"succeeded": 1, "active": 0}]}}),
    }
    sent = tmp_path / "sent"
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(KUBECTL.format(python=sys.executable, target=str(sent)))
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(kubectl.parent), prepend=os.pathsep)
    with ApiServer(answers) as server:
        use_kubernetes(monkeypatch, tmp_path, f"http://{server.address}")
        table = {
            "claim": "training",
            "namespace": "vision",
            "secrets": {"HF_TOKEN": "hugging-face/token"},
        }
        done = submit("/workspace/runs", 2, scheduler="kubeflow", kubeflow=table)
    assert done["failed"] is False
    (job,) = server.of("POST", jobs)
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 8, "nemo:1")
    variables = {one["name"]: one.get("value") for one in trainer["env"]}
    assert VALUES.items() <= variables.items()
    assert variables["PYTHONPATH"] == "/nemo_run/code"
    (secret,) = [one for one in trainer["env"] if one["name"] == "HF_TOKEN"]
    assert secret["valueFrom"] == {"secretKeyRef": {"name": "hugging-face", "key": "token"}}
    # What the ranks find under /nemo_run.
    assert (sent / "code" / "launch" / "site.py").is_file()
    script = (sent / "launch.sh").read_text()
    assert "-m nemo_run.core.runners.fdl_runner -n sft /nemo_run/configs/sft\n" in script
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    recipe = ZlibJSONSerializer().deserialize((sent / "configs" / "sft").read_text())
    assert recipe.trainer.num_nodes == 2
    assert recipe.log.log_dir == "/workspace/runs"
    assert trainer["command"][-1].endswith("/sft/code/launch.sh")
