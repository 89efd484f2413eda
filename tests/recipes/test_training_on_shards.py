"""Trainings of two processes on shards, single and blended, killed and resumed."""

import json

import pytest

from tests.datamodules import energon_data
from tests.recipes.steps import assert_same_steps, steps_of

# The first test waits for all trainings.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STEPS, SAVED, KILLED = 6, 3, 4
GLOBAL_BATCH, RANKS = 4, 2
MICRO_BATCHES = GLOBAL_BATCH // RANKS
KINDS = ("plain", "packed")


@pytest.fixture(scope="module")
def settings(nano_start, tmp_path_factory):
    """The options of both kinds of run: one data set in rows of a sample, and a packed blend."""
    folder = tmp_path_factory.mktemp("shards")
    splits = {
        "train": [energon_data.good_sample(number) for number in range(31)],
        "val": [energon_data.good_sample(number, "v") for number in range(5)],
    }
    path = energon_data.write_set(folder / "first", splits)
    more = {"train": [energon_data.good_sample(number, "t") for number in range(40)]}
    blended = energon_data.write_set(folder / "second", more)
    data = {
        "seq_length": 256,
        "global_batch_size": GLOBAL_BATCH,
        "micro_batch_size": 1,
        "num_workers": 2,
        "shuffle_buffer_size": 4,
    }
    validated = {"validation_split": "val", "num_validation_workers": 1, "path": path}
    packed = {"path": [path, blended], "weights": [0.7, 0.3], "packing_buffer_size": 8}
    run = {
        "dir": str(folder / "runs"),
        "init_from": nano_start["init_from"],
        "steps": STEPS,
        "save_every": SAVED,
    }
    trainer = {"limit_val_batches": 1.0, "val_check_interval": 2}
    return {
        "plain": run | {"data": data | validated, "trainer": trainer},
        "packed": run | {"data": data | packed},
    }


@pytest.fixture(scope="module")
def trained(settings, run_training, tmp_path_factory):
    """The steps of each run, and what each rank read of each."""
    folder = tmp_path_factory.mktemp("notes")
    runs = []
    for kind, options in settings.items():
        whole = options | {"name": f"{kind}_whole", "batch_notes": str(folder / f"{kind}_whole")}
        killed = options | {"name": f"{kind}_killed"}
        first = {"batch_notes": str(folder / f"{kind}_first"), "kill_at_step": KILLED}
        assert run_training([*runs, whole, killed | first], num_processes=RANKS, check=False)
        # The next processes begin with what these have left.
        runs = [killed | {"batch_notes": str(folder / f"{kind}_second")}]
    run_training(runs, num_processes=RANKS)
    steps = {
        name: steps_of(settings["plain"]["dir"], name)
        for kind in KINDS
        for name in (f"{kind}_whole", f"{kind}_killed")
    }
    read = {
        (file.name[:-1], int(file.name[-1])): [json.loads(line) for line in file.open()]
        for file in folder.iterdir()
    }
    return steps, read


def of_kind(kind, batches):
    return [keys for found, keys in batches if found == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_reads_on_with_the_next_sample(trained, kind):
    _, read = trained
    for rank in range(RANKS):
        whole, first, second = (
            of_kind("train", read[f"{kind}_{part}", rank]) for part in ("whole", "first", "second")
        )
        assert len(whole) == STEPS * MICRO_BATCHES
        assert len(first) == KILLED * MICRO_BATCHES
        # The fourth step was taken, but not saved, so it is taken again.
        assert first[: SAVED * MICRO_BATCHES] + second == whole
    ranks = [
        {key for batch in of_kind("train", read[f"{kind}_whole", rank]) for key in batch}
        for rank in range(RANKS)
    ]
    assert ranks[0]
    assert not ranks[0] & ranks[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_has_the_losses_of_an_uninterrupted_one(trained, kind):
    steps, _ = trained
    whole, resumed = steps[f"{kind}_whole"], steps[f"{kind}_killed"]
    assert len(resumed) == STEPS
    assert_same_steps(whole, resumed, loss=1e-6, learning_rate=0)


def test_the_rows_of_the_packed_blend_hold_samples_of_both_sets(trained):
    _, read = trained
    rows = [row for rank in range(RANKS) for row in of_kind("train", read["packed_whole", rank])]
    assert sum(map(len, rows)) > 2 * len(rows)
    assert {key.rpartition("/")[2][0] for row in rows for key in row} == {"s", "t"}


def test_every_validation_of_a_training_reads_every_sample_once(trained):
    # Of 6 steps, every second one is followed by a validation, of 5 samples in steps of 4.
    _, read = trained
    passes = [of_kind("validation", read["plain_whole", rank]) for rank in range(RANKS)]
    assert len(passes[0]) == len(passes[1]) == 3 * 4
    for first in (0, 4, 8):
        given = [key for rank in range(RANKS) for keys in passes[rank][first:][:4] for key in keys]
        names = sorted(key.rpartition("/")[2] for key in given if key != "filler")
        assert names == [f"v{number:04d}" for number in range(5)]
