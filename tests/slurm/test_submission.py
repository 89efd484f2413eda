"""A training on a real Slurm, through the command that a user types, and through its faults."""

import signal
import time

import pytest

from launch.run_report import report_page
from launch.run_state import RunState
from models.checkpoint_paths import newest_checkpoint
from tests.recipes.steps import assert_same_steps, steps_of
from tests.slurm.cluster import LAST_STATES
from tests.slurm.training import SITE, Training
from tests.small_disk import fill, mounted

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 60
SPIKE_FACTOR = 1.003
OVERRIDES = [
    f"trainer.max_steps={STEPS}",
    "log.ckpt.every_n_train_steps=4",
    "trainer.callbacks[3].minutes=0.4",
]


def test_a_training_on_two_nodes_survives_all_faults_and_equals_one_without(launch, cluster):
    report = launch("two_nodes", 2, OVERRIDES, SITE)
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

    cluster.wait_until(lambda: job.state in LAST_STATES, "the end", seconds=400)
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

    script_log = job.script_log()
    assert f"code: nemo-vlm-recipes {report['code']}" in script_log
    assert 'it is "so" $HOME' in script_log.splitlines()
    assert (job.job_folder / "two_nodes" / "code" / "launch" / "site.py").is_file()

    launch("alone", 1, OVERRIDES)
    alone, together = (steps_of(launch.folder, name) for name in ("alone", "two_nodes"))
    assert len(alone) == STEPS
    assert_same_steps(alone, together, loss=1e-4, learning_rate=1e-9)

    state = RunState(job.run_folder)
    assert (state.describe(0), state.max_steps, state.steps_done) == ("finished", STEPS, STEPS)
    assert state.seconds_per_step is not None
    assert report_page(state, 0).count("a rank was killed; bad nodes: n2") == 7

    # The same command again has nothing to do.
    assert launch("two_nodes", 2, OVERRIDES, SITE)["finished"] == ["two_nodes"]


def test_a_training_waits_for_space_and_tries_a_spike_once_more(launch, cluster):
    rules = {"spike_factor": SPIKE_FACTOR, "window_steps": 1}
    overrides = ["trainer.max_steps=16", "log.ckpt.every_n_train_steps=1", "log.ckpt.save_top_k=1"]
    skipping = [f"trainer.callbacks[0].{name}={value}" for name, value in rules.items()]
    launch("skipping", 1, overrides + skipping)
    wanted = steps_of(launch.folder, "skipping")
    spikes = [row["step"] for row in wanted if row.get("skipped")]
    assert spikes

    table = "".join(f"{name} = {value}\n" for name, value in rules.items())
    site = SITE + f'[bad_steps]\naction = "roll_back"\n{table}'
    with mounted(launch.folder / "going_back", 96 * 2**20) as disk:
        report = launch("going_back", 2, overrides, site)
        job = Training(cluster, report, "going_back")
        job.wait(lambda: newest_checkpoint(disk / "checkpoints"), "a checkpoint")

        def is_ended():
            fill(disk, 500_000)  # also what an older checkpoint has left
            return [line for line in job.attempts() if "end" in line]

        job.wait(is_ended, "a full disk")
        job.wait(lambda: job.state == "PENDING", "its second attempt")
        job.wait(lambda: "job exited with code" in job.script_log(), "the end of its script")
        time.sleep(5)  # Slurm must have heard of it before the job may start again
        (disk / "filler").unlink()
        # Somebody has made room, and does not want to wait for ten minutes.
        cluster.call("scontrol", "update", f"JobId={job.number}", "StartTime=now")
        cluster.wait_until(lambda: job.state in LAST_STATES, "the end", seconds=400)
        assert job.state == "COMPLETED", job.attempts()
        ends = [(line["reason"], line["bad_nodes"]) for line in job.attempts() if "end" in line]
        back = ("a bad step, gone back", [])
        assert ends == [("the disk is full", []), *[back] * len(spikes), ("finished", [])]
        assert "No space left on device" in job.log(0)
        found = steps_of(launch.folder, "going_back")
        state = RunState(disk)
        assert [row["action"] for row in state.bad_steps] == ["roll_back", "skip"] * len(spikes)
        assert state.skipped_steps == spikes
    assert_same_steps(wanted, found, loss=1e-4, learning_rate=1e-9)
