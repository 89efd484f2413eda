"""The Energon data module under NeMo: one slow process observes, the tests judge."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datamodules import energon_data as data

ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 8


@pytest.fixture(scope="module")
def settings(tmp_path_factory, assets):
    folder = tmp_path_factory.mktemp("energon")
    splits = {
        "train": [data.good_sample(number) for number in range(31)],
        "val": [data.good_sample(number, "v") for number in range(11)],
    }
    path, other = (data.write_set(folder / name, splits) for name in ("set", "other"))
    arguments = {
        "path": path,
        "assets": assets,
        "seq_length": 128,
        "micro_batch_size": 2,
        "global_batch_size": GLOBAL_BATCH,
        "num_workers": 0,
        "seed": 7,
        "shuffle_buffer_size": 5,
        "max_samples_per_sequence": 4,
    }
    missing = str(folder / "missing")
    refused = [
        {"path": missing},
        {"path": ""},
        {"validation_path": missing},
        {"validation_split": "dev"},
        {"test_split": "test"},
        {"train_split": "training"},
        {"weights": [1.0, 2.0]},
        {"weights": [-1.0]},
        {"assets": missing},
        {"micro_batch_size": 3},
        {"micro_batch_size": 0},
        {"num_workers": -1},
        {"num_validation_workers": -1},
        {"seq_length": 129},
        {"shuffle_buffer_size": -1},
        {"max_samples_per_sequence": 0},
        {"max_tiles": 0},
        {"max_bad_samples_in_a_row": -1},
    ]
    return {
        "arguments": arguments,
        "other": other,
        "refused": refused,
        "io": str(folder / "io"),
        "result": str(folder / "result.json"),
    }


@pytest.fixture(scope="module")
def observed(settings):
    result = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("energon_observations.py")),
            json.dumps(settings),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(Path(settings["result"]).read_text(encoding="utf-8"))


def test_resume_goes_on_with_the_next_sample_on_every_rank(observed):
    assert len(observed["resumes"]) == 24
    for name, run in observed["resumes"].items():
        assert run["found"] == run["expected"], name
        assert run["consumed"] == int(name.split()[-2]) * GLOBAL_BATCH
        assert run["consumed_after"] == 6 * GLOBAL_BATCH
        assert run["saved_again"], name


def test_resume_with_anything_that_changes_the_order_is_refused(observed):
    refused = observed["refusals"]
    assert refused["same"] == "accepted"
    for name in (
        "seed",
        "num_workers",
        "train_split",
        "path",
        "micro_batch_size",
        "shuffle_buffer_size",
        "max_samples_per_sequence",
        "data_parallel_size",
    ):
        assert f"The checkpoint was made with {name}=" in refused[name]
    assert "seed=7 of the training data, but now it is 8" in refused["seed, loaded before setup"]
    assert "holds no state of this data module" in refused["no state"]
    assert "has no consumed_samples, places, settings" in refused["empty state"]
    assert "in the checkpoint is damaged" in refused["damaged"]


def test_requests_that_do_not_suit_get_one_sentence(observed, settings):
    for changes in settings["refused"]:
        message = observed["refusals"][json.dumps(changes)]
        assert message != "accepted", changes
        assert "\n" not in message
        names = [name for name in changes if name in message]
        values = [str(value) for value in changes.values() if str(value) in message]
        assert names or values, (changes, message)
    assert "max_steps of the trainer is -1" in observed["refusals"]['{"max_steps": -1}']
    limit = json.dumps({"limit_train_batches": 5})
    assert "limit_train_batches of the trainer is 5" in observed["refusals"][limit]


def test_limits_count_steps(observed):
    # 8 samples a step in micro-batches of 2 are 4 micro-batches; half of 20 steps are 10.
    assert observed["limits"] == [1.0, 2 * 4, 3 * 4, 4, 10]


def test_validation_and_test_read_every_sample_once_in_whole_steps(observed):
    for loader in ("val_dataloader", "test_dataloader"):
        keys = []
        for batches in observed["evaluation"][loader]:
            # 8 samples a step on two ranks in micro-batches of 2.
            assert len(batches) % 2 == 0
            keys += [key for batch in batches for key in batch]
        read = sorted(key.rpartition("/")[2] for key in keys if key != "filler")
        assert read == [f"v{number:04d}" for number in range(11)]
    assert observed["evaluation"]["none"] == [[], []]


@pytest.mark.parametrize("way", ["reinit", "pickle", "config", "io"])
def test_copies_read_the_same(observed, way):
    assert observed["copies"][way] == observed["copies"]["original"]
