"""Jobs whose ranks fail, on a real Slurm: launch/requeue.sh, and a few lines of Bash as ranks.

A rank gets the number of the attempt in `attempt` and writes a checkpoint with `save NAME`.
"""

import json
import sys
import time
from pathlib import Path

import pytest

from launch.job_script import requeue_lines
from tests.slurm.cluster import LAST_STATES
from tests.small_disk import fill, mounted

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = """\
#!/bin/bash
{lines}
srun --output {folder}/ranks_%j_${{SLURM_RESTART_COUNT:-0}}.out --label --kill-on-bad-exit=0 \
    --wait={wait} {command}
status=$?
exit $status
"""
RANK = """\
attempt=${{SLURM_RESTART_COUNT:-0}}
save() {{
    mkdir -p {folder}/run/checkpoints/$1/weights
    touch {folder}/run/checkpoints/$1/weights/metadata.json
}}
echo attempt $attempt on $SLURMD_NODENAME
{rank}
exit 0
"""
KILLED_AT_FIRST = "[ $attempt = 0 ] && {{ [ $SLURM_PROCID = 1 ] && kill -9 $$; sleep 60; }}"
STOPS_WHEN_ASKED = """\
[ $attempt = 0 ] || exit 0
trap 'save asked; exit 75' TERM
echo ready
for ((i = 0; i < 600; i++)); do sleep 0.1; done
"""
HANGS = """\
[ $attempt = 0 ] || exit 0
if [ $SLURM_PROCID = 0 ]; then
    echo 'Timeout (0:30:00)!'
    echo '  File "/python/torch/distributed/distributed_c10d.py", line 2810 in all_reduce'
    exit 1
fi
"""
# What is asked for, by the name of the job: the ranks' lines, and options of `Job.submit`.
JOBS = {
    "no_fault": ("save one", {}),
    "killed": (KILLED_AT_FIRST.format(), {}),
    "killed_twice": (
        """\
[ $attempt = 2 ] && exit 0
[ $SLURM_PROCID = 1 ] && kill -9 $$
sleep 60
""",
        {},
    ),
    "fails_always": ("exit 3", {"retries": 1}),
    "fails_and_goes_on": ("save $attempt; [ $attempt = 2 ] || exit 3", {"retries": 0}),
    "half_a_checkpoint": (
        "save half; touch {folder}/run/checkpoints/half-unfinished; exit 3",
        {"retries": 0},
    ),
    "time_limit": (STOPS_WHEN_ASKED, {"options": ["--time=1", "--signal=B:USR1@30"]}),
    "asked_to_stop": (STOPS_WHEN_ASKED, {}),
    "goes_back": ("[ $attempt = 0 ] && exit 76", {}),
    "full_disk": (
        "[ $attempt = 0 ] && { echo 'OSError: [Errno 28] No space left on device'; exit 1; }",
        {"retries": 0},
    ),
    "cancelled": (STOPS_WHEN_ASKED, {}),
    "hangs_with_stacks": (HANGS + "echo 'Timeout (0:30:00)!'; exit 1", {}),
    "hangs_without_stacks": (HANGS + "sleep 60", {}),
}


@pytest.fixture(scope="module")
def jobs(cluster, tmp_path_factory):
    """All jobs, which run at the same time."""
    jobs = {}
    for name, (rank, options) in JOBS.items():
        jobs[name] = Job(cluster, tmp_path_factory.mktemp(name))
        jobs[name].submit(rank, **options)
    return jobs


class Job:
    """A job on two nodes below a folder."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder

    def submit(
        self,
        rank,
        retries=3,
        doctor=(),
        setup="",
        command="bash {folder}/rank.sh",
        wait=2,
        options=(),
    ):
        lines = requeue_lines(
            str(self.folder / "run"), retries, disk_wait_seconds=DISK_WAIT_SECONDS, doctor=doctor
        )
        script = self.folder / "job.sh"
        command = command.format(folder=self.folder)
        lines = f"{setup}\n{lines}"
        script.write_text(
            SCRIPT.format(lines=lines, folder=self.folder, wait=wait, command=command)
        )
        rank = rank.replace("{folder}", str(self.folder))
        (self.folder / "rank.sh").write_text(RANK.format(folder=self.folder, rank=rank))
        self.number = self.cluster.call(
            "sbatch", "--parsable", "--requeue", "--nodes=2", "--ntasks-per-node=1", "--mem=10",
            "--time=5", "--open-mode=append", f"--output={self.folder}/job.out", *options,
            str(script),
        )  # fmt: skip

    @property
    def state(self):
        return self.cluster.call("squeue", "-h", "-t", "all", "-j", self.number, "-o", "%T")

    def end(self):
        self.cluster.wait_until(lambda: self.state in LAST_STATES, self.log, 240)
        return self.state

    def wait_for_ranks(self):
        path = self.folder / f"ranks_{self.number}_0.out"
        self.cluster.wait_until(
            lambda: path.is_file() and path.read_text().count("ready") == 2, self.log, 120
        )

    def attempts(self):
        lines = (self.folder / "run" / "log" / "attempts.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def ends(self):
        """The ends of the attempts: (status, reason, progress, bad nodes)."""
        return [
            (line["end"], line["reason"], line["progress"], line["bad_nodes"])
            for line in self.attempts()
            if "end" in line
        ]

    def nodes(self):
        return [line["nodes"] for line in self.attempts() if "nodes" in line]

    def log(self):
        return (self.folder / "job.out").read_text()


FINISHED = (0, "finished", False, [])
DISK_WAIT_SECONDS = 4


def test_a_job_without_faults_runs_once(jobs):
    job = jobs["no_fault"]
    assert job.end() == "COMPLETED", job.log()
    assert job.ends() == [(0, "finished", True, [])]


def test_ranks_stop_when_the_time_is_nearly_over_and_the_job_goes_on(jobs):
    job = jobs["time_limit"]
    assert job.end() == "COMPLETED", job.log()
    assert job.ends() == [(75, "time limit", True, []), FINISHED]


def test_a_job_whose_ranks_were_asked_to_stop_goes_on(jobs, cluster):
    job = jobs["asked_to_stop"]
    job.wait_for_ranks()
    cluster.call("scancel", "--signal=TERM", job.number)
    assert job.end() == "COMPLETED", job.log()
    assert job.ends() == [(75, "asked to stop", True, []), FINISHED]


def test_a_job_goes_on_when_it_goes_back_to_a_checkpoint(jobs):
    job = jobs["goes_back"]
    assert job.end() == "COMPLETED", job.log()
    assert job.ends() == [(76, "a bad step, gone back", False, []), FINISHED]


def test_a_full_disk_is_waited_for_and_uses_no_retry_up(jobs):
    job = jobs["full_disk"]
    assert job.end() == "COMPLETED", job.log()
    assert job.ends() == [(1, "the disk is full", False, []), FINISHED]
    (_, ended, begun, _) = job.attempts()
    assert begun["time"] - ended["time"] >= DISK_WAIT_SECONDS


def test_a_cancelled_job_stays_cancelled(jobs, cluster):
    job = jobs["cancelled"]
    job.wait_for_ranks()
    cluster.call("scancel", job.number)
    assert job.end() == "CANCELLED", job.log()
    time.sleep(3)
    assert job.state == "CANCELLED"


def test_a_node_whose_rank_was_killed_is_left_out_of_the_next_attempt(jobs):
    job = jobs["killed"]
    assert job.end() == "COMPLETED", job.log()
    bad = job.nodes()[0][1]
    assert job.ends() == [(137, "a rank was killed", False, [bad]), FINISHED]
    assert bad not in job.nodes()[1]


def test_of_the_bad_nodes_the_newest_are_left_out_when_the_others_are_too_few(jobs):
    job = jobs["killed_twice"]
    assert job.end() == "COMPLETED", job.log()
    first, second, third = job.nodes()
    assert [bad for _, _, _, bad in job.ends()] == [[first[1]], [second[1]], []]
    assert first[1] not in second
    assert second[1] not in third


@pytest.mark.parametrize("name", ["hangs_with_stacks", "hangs_without_stacks"])
def test_the_node_of_the_rank_that_others_wait_for_is_left_out(jobs, name):
    job = jobs[name]
    assert job.end() == "COMPLETED", job.log()
    (_, reason, _, (bad,)), finished = job.ends()
    assert (reason, bad, finished) == ("hang", job.nodes()[0][1], FINISHED)
    assert bad not in job.nodes()[1]


def test_a_job_that_makes_no_progress_is_given_up(jobs):
    job = jobs["fails_always"]
    assert job.end() == "FAILED"
    assert job.ends() == [(3, "status 3", False, [])] * 2
    assert "error: 2 attempts in a row without a new checkpoint" in job.log()


def test_a_job_that_makes_progress_is_not_given_up(jobs):
    job = jobs["fails_and_goes_on"]
    assert job.end() == "COMPLETED", job.log()
    fails = (3, "status 3", True, [])
    assert job.ends() == [fails, fails, (0, "finished", True, [])]


def test_half_a_checkpoint_is_no_progress(jobs):
    job = jobs["half_a_checkpoint"]
    assert job.end() == "FAILED"
    assert job.ends() == [(3, "status 3", False, [])]


def test_ranks_are_not_started_without_space_for_a_checkpoint(cluster, tmp_path):
    job = Job(cluster, tmp_path)
    with mounted(tmp_path / "run", 16 * 2**20) as run:
        whole = run / "checkpoints" / "whole" / "weights"
        cut_off = run / "checkpoints" / "cut"
        for folder in (whole, cut_off):
            folder.mkdir(parents=True)
        (whole / "metadata.json").touch()
        (whole / "data").write_bytes(bytes(6 * 2**20))
        (run / "checkpoints" / "cut-unfinished").touch()
        filler = fill(run, 7 * 2**19)
        job.submit("true")
        words = "error: 3 MiB are free in"
        cluster.wait_until(
            lambda: (tmp_path / "job.out").is_file() and job.log().count(words) >= 2, job.log, 120
        )
        assert "a checkpoint has 6 MiB" in job.log()
        # Half a checkpoint of 4 MB will make room, together with what is free.
        filler.unlink()
        (cut_off / "data").write_bytes(bytes(4 * 2**20))
        fill(run, 7 * 2**19)
        assert job.end() == "COMPLETED", job.log()
        assert job.ends() == [FINISHED]


def test_a_node_that_is_not_fit_is_left_out_before_the_ranks_start(cluster, tmp_path):
    job = Job(cluster, tmp_path)
    # The second rank of the first attempt may open few files; names of nodes are known to nobody.
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    first_attempt = "[ $SLURM_PROCID$SLURM_RESTART_COUNT = 1 ]"
    python.write_text(
        f'#!/bin/bash\n{first_attempt} && ulimit -n 512\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    job.submit(
        "",
        doctor=["--gpus", "0", "--dir", str(tmp_path / "run")],
        setup=f"cd {ROOT}; export MASTER_ADDR=127.0.0.1 PATH={python.parent}:$PATH",
        command="python --version",
        wait=60,
    )
    assert job.end() == "COMPLETED", job.log()
    bad = job.nodes()[0][1]
    assert job.ends() == [(1, "the doctor found a fault", False, [bad]), FINISHED], job.log()
    assert bad not in job.nodes()[1]
    assert "1: open files" in job.log()
    assert "ulimit -n 4096" in job.log()
    seen = (tmp_path / "run" / "log" / f"doctor_{job.number}.txt").read_text()
    assert "all-reduce of 2 ranks on 1 nodes (gloo)" in seen  # by the name of the machine
    ranks = tmp_path.glob(f"ranks_{job.number}_*.out")
    assert sorted(path.name[-5:] for path in ranks) == ["1.out"]


def test_a_job_that_makes_room_for_an_urgent_one_saves_and_goes_on_after_it(
    jobs, cluster, tmp_path
):
    for job in jobs.values():
        job.end()
    job = Job(cluster, tmp_path)
    job.submit(STOPS_WHEN_ASKED)
    job.wait_for_ranks()
    urgent = cluster.call(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--time=5",
        f"--output={tmp_path}/urgent.out", "--wrap=date +%s; sleep 3; date +%s",
    )  # fmt: skip
    assert job.end() == "COMPLETED", job.log()
    state = cluster.call("squeue", "-h", "-t", "all", "-j", urgent, "-o", "%T")
    assert state == "COMPLETED"
    (_, stopped, again, _) = job.attempts()
    assert (stopped["end"], stopped["progress"], stopped["bad_nodes"]) == (75, True, [])
    begun, ended = map(int, (tmp_path / "urgent.out").read_text().split())
    assert stopped["time"] <= begun <= ended <= again["time"]


def test_a_lost_node_is_left_out_of_the_attempts_after_it(jobs, cluster, tmp_path):
    for job in jobs.values():
        job.end()
    job = Job(cluster, tmp_path)
    job.submit("[ $attempt = 0 ] && { echo ready; sleep 100; }")
    job.wait_for_ranks()
    lost = job.nodes()[0][1]
    cluster.lose_node(lost)
    try:
        assert job.end() == "COMPLETED", job.log()
    finally:
        cluster.start_node(lost)
    assert job.ends() == [(None, "a node was lost", False, [lost]), FINISHED]
    assert lost not in job.nodes()[1]
