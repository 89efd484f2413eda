"""Trainings in which one process gets a signal, hangs or computes nonsense, and what follows."""

import math
import re
import shutil
import zlib

import pytest

from recipes.steps_file import BAD_STEPS_FILE, read_steps
from tests.recipes.steps import assert_same_steps, steps_of
from tests.small_disk import mounted

# The first test waits for all trainings.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STEPS, FAULT_AT, BATCH = 5, 2, 4
SPIKE_FACTOR = 3.0
DISK_BYTES = 64_000_000
KEEP_BEST = {
    "monitor": "reduced_train_loss",
    "mode": "min",
    "save_top_k": 2,
    "filename": "{reduced_train_loss}-{step}-{consumed_samples}",
}


@pytest.fixture(scope="module")
def runs(nano_start, run_training, tmp_path_factory):
    """The steps of the runs, whole and resumed, and what was printed and left at each fault."""
    folder = tmp_path_factory.mktemp("stopped")
    options = nano_start | {"dir": str(folder), "steps": STEPS, "save_every": 100}
    options |= {"data": {"global_batch_size": BATCH, "micro_batch_size": 1}}
    found = {"folder": folder}

    def named(name, kind=None, **others):
        fault = {} if kind is None else {"fault": {"kind": kind, "step": FAULT_AT}}
        fault.get("fault", {}).update(others.pop("fault", {}))
        return options | {"name": name} | fault | others

    def fail(name, *todo, num_processes=1):
        assert run_training(todo, num_processes=num_processes, check=False) != 0
        found[name, "log"] = run_training.log.read_text(errors="replace")
        found[name, "left"] = steps_of(folder, name)

    skipping = [
        named("loss_nan", "loss"),
        named("gradient_inf", "gradient", fault={"factor": math.inf}),
        named(
            "spike",
            "loss",
            fault={"factor": 50.0},
            bad_steps={"spike_factor": SPIKE_FACTOR, "window_steps": 4},
        ),
    ]
    fail(
        "stopped",
        named("whole"),
        *skipping,
        named("stopped", "SIGTERM", save_every=1, ckpt=KEEP_BEST),
        num_processes=2,
    )
    goes_back = {"save_every": 1, "bad_steps": {"action": "roll_back"}}
    # Telemetry takes all runs of a process to save like its first one, so this one runs alone.
    in_background = {"strategy": {"ckpt_async_save": True}}
    fail("back", named("back", "loss", **goes_back, **in_background), num_processes=2)
    saved = folder / "back" / "checkpoints"
    found["back", "checkpoints"] = sorted(path.name for path in saved.iterdir())
    shutil.copytree(folder / "back", folder / "back_twice")
    resumed = [
        named("stopped", save_every=1, ckpt=KEEP_BEST),
        named("back", **goes_back),
        named("back_twice", "loss", **goes_back),
    ]
    with mounted(folder / "full", DISK_BYTES) as disk:
        fail("full", *resumed, named("full", "full_disk", save_every=1))
        found["resumed", "log"] = found["full", "log"]
        found["full", "checkpoints"] = sorted(one.name for one in (disk / "checkpoints").iterdir())
        (disk / "filler").unlink()
        fail(
            "hung",
            named("full", save_every=1),
            named("hung", "hang", save_every=1, hang_minutes=0.3),
        )
        found["full"] = steps_of(folder, "full")
    diverges = named("diverged", "loss", fault={"steps": 2}, bad_steps={"most_in_a_row": 1})
    fail("diverged", named("hung", save_every=1), diverges)
    return {path.name: steps_of(folder, path.name) for path in folder.iterdir()} | found


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_and_a_status_of_its_own(runs):
    assert [row["step"] for row in runs["stopped", "left"]] == list(range(FAULT_AT))
    log = runs["stopped", "log"]
    assert f"stopped by a signal after {FAULT_AT} of {STEPS} steps" in log
    assert "a rank ended with 75" in log
    assert "Traceback (most recent call last)" not in log.split("stopped by a signal")[0]


def test_the_best_checkpoints_and_the_last_one_are_kept(runs):
    """Also those from before the run was resumed."""
    names = [path.name for path in (runs["folder"] / "stopped" / "checkpoints").iterdir()]
    kept = {int(re.search(r"step=(\d+)", name)[1]) for name in names if "-last" not in name}
    losses = {row["step"]: row["loss"] for row in runs["stopped"]}
    assert kept == set(sorted(losses, key=losses.get)[:2])
    (last,) = [name for name in names if "-last" in name]
    assert f"step={STEPS - 1}-" in last


def test_a_hang_ends_the_run_with_its_stacks(runs):
    log = runs["hung", "log"]
    assert log.count("Timeout (0:00:18)!") == 1
    assert log.count("in wait_for_ever") == 1
    assert [row["step"] for row in runs["hung", "left"]] == list(range(FAULT_AT - 1))


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(runs):
    words = (
        r"OSError: \[Errno 28\] No space left on device: [\d,]+ bytes are free; a checkpoint had"
    )
    assert re.search(words, runs["full", "log"])
    first, link, half, mark = runs["full", "checkpoints"]
    assert [first, link] == ["step=0-consumed_samples=0", "step=0-consumed_samples=0-last"]
    assert half.startswith("step=1-")
    assert mark == f"{half}-unfinished"
    assert [row["step"] for row in runs["full", "left"]] == list(range(FAULT_AT))


@pytest.mark.parametrize("name", ["stopped", "hung", "back", "full"])
def test_a_resumed_run_is_the_uninterrupted_one(name, runs):
    assert len(runs["whole"]) == STEPS
    assert_same_steps(runs["whole"], runs[name], loss=1e-4, learning_rate=1e-9)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("loss_nan", "the loss is nan"),
        ("gradient_inf", "the norm of the gradients is (nan|inf)"),
        ("spike", r"the loss is \d+\.\d+, \d+\.\d times the median of the last ones"),
    ],
)
def test_the_update_of_a_bad_step_is_left_out(name, fault, runs):
    rows = runs[name]
    assert [row.get("skipped", False) for row in rows] == [
        step == FAULT_AT for step in range(STEPS)
    ]
    assert_same_steps(runs["whole"][:FAULT_AT], rows[:FAULT_AT], loss=1e-6)
    # Whatever was wrong, the weights and the moments after it are the same.
    assert_same_steps(runs["loss_nan"][FAULT_AT + 1 :], rows[FAULT_AT + 1 :], loss=1e-6)
    for row, whole in zip(rows[FAULT_AT + 1 :], runs["whole"][FAULT_AT + 1 :], strict=True):
        assert row["samples"] == whole["samples"]
        assert row["loss"] != pytest.approx(whole["loss"], rel=1e-4)
    (bad,) = read_steps(runs["folder"] / name / BAD_STEPS_FILE)
    assert (bad["step"], bad["action"]) == (FAULT_AT, "skip")
    assert re.fullmatch(fault, bad["fault"])
    assert len(set(bad["samples"])) == BATCH
    of_first_rank = "\n".join(bad["samples"][: BATCH // 2])
    assert zlib.crc32(of_first_rank.encode()) == runs["whole"][FAULT_AT]["samples"]


def test_a_run_goes_back_once_and_then_leaves_the_step_out(runs):
    assert "a rank ended with 76" in runs["back", "log"]
    assert [row["step"] for row in runs["back", "left"]] == list(range(FAULT_AT))
    rows = read_steps(runs["folder"] / "back" / BAD_STEPS_FILE)
    assert [row["action"] for row in rows] == ["roll_back"]
    # The checkpoint that was being written when it went back.
    assert [name for name in runs["back", "checkpoints"] if name.startswith("step=1-")]
    assert not [name for name in runs["back", "checkpoints"] if "unfinished" in name]
    assert f"step {FAULT_AT} is good now, and was not before" in runs["resumed", "log"]
    rows = read_steps(runs["folder"] / "back_twice" / BAD_STEPS_FILE)
    assert [row["action"] for row in rows] == ["roll_back", "skip"]
    assert sorted(rows[0]["samples"]) == sorted(rows[1]["samples"])
    assert_same_steps(
        runs["loss_nan"][FAULT_AT + 1 :], runs["back_twice"][FAULT_AT + 1 :], loss=1e-4
    )


def test_a_run_that_has_diverged_ends(runs):
    assert (
        "RuntimeError: 2 bad steps in a row, the last one 3 (the loss is nan): the model has"
        in (runs["diverged", "log"])
    )
