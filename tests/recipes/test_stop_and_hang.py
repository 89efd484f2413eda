"""Trainings in which one process gets a signal, or hangs; then they are resumed."""

import pytest

from tests.recipes.steps import assert_same_steps, steps_of

# The first test waits for all trainings.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STEPS, FAULT_AT = 5, 2


@pytest.fixture(scope="module")
def runs(nano_start, run_training, tmp_path_factory):
    """The steps of the runs, whole and resumed, and what was printed and left at each fault."""
    folder = tmp_path_factory.mktemp("stopped")
    options = nano_start | {"dir": str(folder), "steps": STEPS, "save_every": 100}
    options |= {"data": {"global_batch_size": 4, "micro_batch_size": 1}}
    whole = options | {"name": "whole"}
    stopped, hung = options | {"name": "stopped"}, options | {"name": "hung"}
    hung |= {"save_every": 1}
    found = {}

    def fail(name, *todo, num_processes=1):
        assert run_training(todo, num_processes=num_processes, check=False) != 0
        found[name, "log"] = run_training.log.read_text(errors="replace")
        found[name, "left"] = steps_of(folder, name)

    signalled = stopped | {"fault": {"kind": "SIGTERM", "step": FAULT_AT}}
    fail("stopped", whole, signalled, num_processes=2)
    hanging = {"fault": {"kind": "hang", "step": FAULT_AT}, "hang_minutes": 0.3}
    fail("hung", stopped, hung | hanging)
    run_training([hung])
    return found | {name: steps_of(folder, name) for name in ("whole", "stopped", "hung")}


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_and_a_status_of_its_own(runs):
    assert [row["step"] for row in runs["stopped", "left"]] == list(range(FAULT_AT))
    log = runs["stopped", "log"]
    assert f"stopped by a signal after {FAULT_AT} of {STEPS} steps" in log
    assert "exitcode  : 75" in log
    assert "Traceback (most recent call last)" not in log.split("stopped by a signal")[0]


def test_a_hang_ends_the_run_with_its_stacks(runs):
    log = runs["hung", "log"]
    assert log.count("Timeout (0:00:18)!") == 1
    assert log.count("in wait_for_ever") == 1
    assert [row["step"] for row in runs["hung", "left"]] == list(range(FAULT_AT - 1))


@pytest.mark.parametrize("name", ["stopped", "hung"])
def test_a_resumed_run_is_the_uninterrupted_one(name, runs):
    assert len(runs["whole"]) == STEPS
    assert_same_steps(runs["whole"], runs[name], loss=1e-4, learning_rate=1e-9)
