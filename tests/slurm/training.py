"""A nano training as a job of the test's cluster, and what can be done to it."""

from pathlib import Path

import psutil

from launch.attempts import attempts_file, read_attempts
from models.checkpoint_paths import newest_checkpoint, unfinished_checkpoints
from tests.slurm.cluster import LAST_STATES

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

    def script_log(self):
        """What the job's script has printed."""
        return "".join(path.read_text() for path in self.job_folder.rglob("sbatch_*.out"))

    def wait(self, done, what):
        def ended():
            assert self.state not in LAST_STATES, self.attempts()
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
