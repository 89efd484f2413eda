"""A training submitted over SSH, as from a laptop: to a real sshd, and run by a real Slurm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.steps_file import RUN_FILE, STEPS_FILE, read_steps
from tests.nano_start import write_nano_start
from tests.slurm.cluster import LAST_STATES
from tests.slurm.login_node import LoginNode, missing_programs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SITE = """
scheduler = "slurm"
# The environment of this project is on the login node too; the test's nodes have no names.
setup = ["export MASTER_ADDR=127.0.0.1 PATH={python}:$PATH", "printenv lower_Case"]

[environment]
lower_Case = 'it is "so" $HOME'
OMP_NUM_THREADS = 1

WANDB_MODE = "offline"

[wandb]
project = "vision"

[slurm]
account = "anyone"
partition = "main"
exclusive = false

[slurm.ssh]
host = "127.0.0.1"
user = "{user}"
port = {port}
identity = "{identity}"
job_folder = "{jobs}"
"""


@pytest.fixture
def login_node(cluster, tmp_path):
    missing = missing_programs()
    if missing:
        reason = f"needs {', '.join(missing)} (Debian: apt-get install openssh-server rsync)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path / "login"
    folder.mkdir()
    with LoginNode(folder, cluster) as node:
        yield node


@pytest.fixture
def train(login_node, project_root, tmp_path):
    """Runs the verb train with a site; returns the finished process and its report's path."""
    start = write_nano_start(tmp_path / "start")

    def run(folder, **site):
        values = {
            "python": Path(sys.executable).parent,
            "user": login_node.user,
            "port": login_node.port,
            "identity": login_node.identity,
            "jobs": tmp_path / "jobs",
        }
        (tmp_path / "site.toml").write_text(SITE.format(**values | site))
        factory = (
            f"nvila(stage='sft', size='nano', dir='{folder}', init_from='{start['init_from']}')"
        )
        report = tmp_path / "report.json"
        environment = project_root.environment | {
            "NEMORUN_HOME": str(tmp_path / "home"),
            "PATH": login_node.client_path,
        }
        finished = subprocess.run(
            [sys.executable, "-m", "launch", "train", "--factory", factory]
            + [f"data.train_paths={start['train_paths']}", "trainer.max_steps=3"]
            + [f"data.image_folder={start['image_folder']}", "--allow-dirty"]
            + ["--site", str(tmp_path / "site.toml"), "--json", str(report)],
            cwd=project_root.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return finished, report

    return run


def test_a_training_is_submitted_over_ssh(train, cluster, login_node, tmp_path):
    finished, _ = train("runs")
    assert finished.returncode == 2
    assert "is relative, and this site's jobs run on machines" in finished.stderr

    finished, report = train(tmp_path / "runs")
    assert finished.returncode == 0, finished.stderr[-3000:]
    done = json.loads(report.read_text())
    assert "Accepted publickey" in (login_node.folder / "log").read_text()
    number = done["jobs"]["sft"]

    def state():
        return cluster.call("squeue", "-h", "-t", "all", "-j", number, "-o", "%T")

    logs = tmp_path / "jobs"
    cluster.wait_until(lambda: state() in LAST_STATES, "the end of the job", seconds=400)
    text = "".join(path.read_text() for path in logs.rglob("*.out"))
    assert state() == "COMPLETED", text[-3000:]
    run = tmp_path / "runs" / "sft"
    assert [row["step"] for row in read_steps(run / STEPS_FILE)] == [0, 1, 2]
    assert json.loads((run / RUN_FILE).read_text()) == {"max_steps": 3, "code": done["code"]}
    (curves,) = (run / "wandb").glob("offline-run-*/run-sft-*.wandb")
    assert b"tokens_per_second" in curves.read_bytes()
    assert f"code: nemo-vlm-recipes {done['code']}" in text
    assert 'it is "so" $HOME' in text.splitlines()
    (code,) = logs.rglob("code/launch/site.py")
    assert code.is_relative_to(tmp_path / "jobs" / "sft")
