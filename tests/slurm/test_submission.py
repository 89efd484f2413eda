"""A training on a real Slurm, through the command that a user types, and through its faults."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from launch.attempts import attempts_file, read_attempts
from launch.run_report import report_page
from launch.run_state import RunState
from models.checkpoint_paths import newest_checkpoint, unfinished_checkpoints
from tests.nano_start import write_nano_start
from tests.recipes.steps import assert_same_steps, steps_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 60
GOING = ("PENDING", "RUNNING", "COMPLETING")
RUNNER = "nemo_run.core.runners.fdl_runner"
SITE = """
scheduler = "slurm"
# The names of the test's nodes are known to nobody.
setup = ["printenv lower_Case", "export MASTER_ADDR=127.0.0.1"]

[environment]
lower_Case = 'it is "so" $HOME'
OMP_NUM_THREADS = 1

[slurm]
account = "anyone"
partition = "main"
exclusive = false
"""
OVERRIDES = [
    f"trainer.max_steps={STEPS}",
    "log.ckpt.every_n_train_steps=4",
    "trainer.callbacks[3].minutes=0.4",
]


@pytest.fixture(scope="module")
def launch(cluster, project_root, tmp_path_factory):
    """Runs `train` in the checkout; returns what it reported."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "site.toml").write_text(SITE)
    start = write_nano_start(folder / "start")
    environment = project_root.environment | cluster.environment
    environment["NEMORUN_HOME"] = str(folder / "jobs")

    def run(name, nodes, *options):
        factory = (
            f"nvila(stage='sft', size='nano', dir='{folder}', name='{name}', num_nodes={nodes}, "
            f"init_from='{start['init_from']}')"
        )
        paths = [
            f"data.train_paths={start['train_paths']}",
            f"data.image_folder={start['image_folder']}",
        ]
        report = folder / f"{name}.json"
        finished = subprocess.run(
            [sys.executable, "-m", "launch", "train", "--factory", factory, *paths]
            + [*OVERRIDES, *options, "--json", str(report)],
            cwd=project_root.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        return json.loads(report.read_text())

    run.folder = folder
    return run


class Training:
    """A job on two nodes, and what can be done to it."""

    def __init__(self, cluster, report, name):
        self.cluster, self.number = cluster, report["jobs"][name]
        self.run_folder, self.job_folder = Path(report["runs"][name]), Path(report["experiment"])

    @property
    def state(self):
        return self.cluster.call("squeue", "-h", "-t", "all", "-j", self.number, "-o", "%T")

    def attempts(self):
        return read_attempts(attempts_file(self.run_folder))

    def log(self, attempt):
        """What the ranks of an attempt have printed."""
        return "".join(path.read_text() for path in self.job_folder.rglob(f"log-*_{attempt}.out"))

    def wait(self, done, what):
        def ended():
            assert self.state in GOING, self.attempts()
            return done()

        self.cluster.wait_until(ended, what, seconds=400)

    def wait_for_steps(self, attempt):
        self.wait(lambda: self.log(attempt).count("0: Training epoch") >= 3, f"attempt {attempt}")

    def wait_for_half_a_checkpoint(self):
        folder = self.run_folder / "checkpoints"
        self.wait(lambda: newest_checkpoint(folder), "a checkpoint")
        self.cluster.wait_until(lambda: unfinished_checkpoints(folder), "half a checkpoint")

    def signal_rank(self, rank, number):
        """Send a rank a signal, and not the processes that it has started."""
        mark = f"SLURM_PROCID={rank}".encode()
        ranks = [
            process
            for process in map(psutil.Process, self.cluster.processes())
            if RUNNER in process.cmdline()
            and process.parent().name().startswith("slurmstepd")
            and mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        ]
        (process,) = ranks
        process.send_signal(number)


def test_a_training_on_two_nodes_survives_all_faults_and_equals_one_without(launch, cluster):
    site = ["--site", str(launch.folder / "site.toml"), "--allow-dirty"]
    report = launch("two_nodes", 2, *site)
    job = Training(cluster, report, "two_nodes")

    job.wait_for_half_a_checkpoint()
    job.signal_rank(1, signal.SIGKILL)

    job.wait_for_steps(attempt=1)
    job.signal_rank(1, signal.SIGSTOP)

    job.wait_for_steps(attempt=2)
    cluster.call("scancel", "--batch", "--signal=USR1", job.number)  # as before the time is over

    job.wait_for_steps(attempt=3)
    *_, last = (line["nodes"] for line in job.attempts() if "nodes" in line)
    cluster.lose_node(last[1])
    job.wait(lambda: job.state == "PENDING", "the node's loss")
    cluster.start_node(last[1])

    cluster.wait_until(lambda: job.state not in GOING, "the end", seconds=400)
    assert job.state == "COMPLETED", job.attempts()
    begun = [line["nodes"] for line in job.attempts() if "nodes" in line]
    ends = [line for line in job.attempts() if "end" in line]
    assert [line["reason"] for line in ends] == [
        "a rank was killed", "hang", "time limit", "a node was lost", "finished",
    ]  # fmt: skip
    bad = [line["bad_nodes"] for line in ends]
    assert bad == [[begun[0][1]], [begun[1][1]], [], [begun[3][1]], []]
    for attempt in (0, 1, 3):
        assert bad[attempt][0] not in begun[attempt + 1]
    assert "was cut off while it was written; step=" in job.log(1)
    assert "0: Timeout (0:00:24)!" in job.log(1)
    assert "distributed_c10d.py" in job.log(1)

    script_log = "".join(path.read_text() for path in job.job_folder.rglob("sbatch_*.out"))
    assert f"code: nemo-vlm-recipes {report['code']}" in script_log
    assert 'it is "so" $HOME' in script_log.splitlines()
    assert (job.job_folder / "two_nodes" / "code" / "launch" / "site.py").is_file()

    launch("alone", 1)
    alone, together = (steps_of(launch.folder, name) for name in ("alone", "two_nodes"))
    assert len(alone) == STEPS
    assert_same_steps(alone, together, loss=1e-4, learning_rate=1e-9)

    state = RunState(job.run_folder)
    assert (state.describe(0), state.max_steps, state.steps_done) == ("finished", STEPS, STEPS)
    assert state.seconds_per_step is not None
    assert report_page(state, 0).count("a rank was killed; bad nodes: n2") == 7

    # The same command again has nothing to do.
    assert launch("two_nodes", 2, *site)["finished"] == ["two_nodes"]
