"""Jobs whose ranks fail, on a real Slurm: launch/requeue.sh, and a few lines of Bash as ranks.

A rank gets the number of the attempt in `attempt` and writes a checkpoint with `save NAME`.
"""

import json
import time

import pytest

from launch.job_script import requeue_lines

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = """\
#!/bin/bash
{lines}
srun --output {folder}/ranks_%j_${{SLURM_RESTART_COUNT:-0}}.out --label --kill-on-bad-exit=0 \
    --wait={wait} bash {folder}/rank.sh
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
    "time_limit": (STOPS_WHEN_ASKED, {}),
    "asked_to_stop": (STOPS_WHEN_ASKED, {}),
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

    def submit(self, rank, retries=3):
        lines = requeue_lines(str(self.folder / "run"), retries)
        script = self.folder / "job.sh"
        script.write_text(SCRIPT.format(lines=lines, folder=self.folder, wait=2))
        rank = rank.replace("{folder}", str(self.folder))
        (self.folder / "rank.sh").write_text(RANK.format(folder=self.folder, rank=rank))
        self.number = self.cluster.call(
            "sbatch", "--parsable", "--requeue", "--nodes=2", "--ntasks-per-node=1", "--mem=10",
            "--time=5", "--open-mode=append", f"--output={self.folder}/job.out", str(script),
        )  # fmt: skip

    @property
    def state(self):
        return self.cluster.call("squeue", "-h", "-t", "all", "-j", self.number, "-o", "%T")

    def end(self):
        going = ("PENDING", "RUNNING", "COMPLETING")
        self.cluster.wait_until(lambda: self.state not in going, self.log, 240)
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


def test_a_job_without_faults_runs_once(jobs):
    job = jobs["no_fault"]
    assert job.end() == "COMPLETED", job.log()
    assert job.ends() == [(0, "finished", True, [])]


def test_ranks_stop_when_the_time_is_nearly_over_and_the_job_goes_on(jobs, cluster):
    job = jobs["time_limit"]
    job.wait_for_ranks()
    cluster.call("scancel", "--batch", "--signal=USR1", job.number)  # as Slurm does it
    assert job.end() == "COMPLETED", job.log()
    assert job.ends() == [(75, "time limit", True, []), FINISHED]


def test_a_job_whose_ranks_were_asked_to_stop_goes_on(jobs, cluster):
    job = jobs["asked_to_stop"]
    job.wait_for_ranks()
    cluster.call("scancel", "--signal=TERM", job.number)
    assert job.end() == "COMPLETED", job.log()
    assert job.ends() == [(75, "asked to stop", True, []), FINISHED]


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
