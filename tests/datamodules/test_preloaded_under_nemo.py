"""The NeMo data module with NeMo's own sampler: one slow process observes, the tests judge."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GLOBAL_BATCH = 8


@pytest.fixture(scope="module")
def settings(tmp_path_factory, write_jsonl, make_record, assets, llama_assets, images):
    folder = tmp_path_factory.mktemp("preloaded")

    def write(name, rows, **options):
        records = [make_record(f"{name} {row}", f"{row}", **options) for row in range(rows)]
        return write_jsonl(folder / f"{name}.jsonl", records)

    arguments = {
        "train_paths": [write("text", 31), write("image", 17, image="one.png")],
        "weights": [2.0, 1.0],
        "validation_paths": write("validation", 11),
        "test_paths": [write("test", 3), write("more", 5)],
        "image_folder": images,
        "assets": assets,
        "seq_length": 128,
        "micro_batch_size": 2,
        "global_batch_size": GLOBAL_BATCH,
        "num_workers": 0,
        "seed": 7,
    }
    missing = str(folder / "missing.jsonl")
    (folder / "empty.jsonl").write_text("")
    refused = [
        {"train_paths": missing, "weights": None},
        {"validation_paths": missing},
        {"test_paths": str(folder / "empty.jsonl")},
        {"weights": [1.0]},
        {"weights": [1.0, -1.0]},
        {"micro_batch_size": 3},
        {"micro_batch_size": 0},
        {"global_batch_size": 0},
        {"num_workers": -1},
        {"max_tiles": 0},
        {"assets": llama_assets, "max_tiles": 5},
        {"seq_length": 129},
        {"split": [0.5, 0.3, 0.2]},
        {"split": [0.5, 0.3], "validation_paths": None, "test_paths": None},
        {"image_folder": [images]},
        {"image_folder": missing},
        {"assets": missing},
        {"max_bad_samples_in_a_row": -1},
    ]
    return {
        "arguments": arguments,
        "llama_assets": llama_assets,
        "refused": refused,
        "result": str(folder / "result.json"),
    }


@pytest.fixture(scope="module")
def observed(settings):
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("nemo_observations.py")),
            json.dumps(settings),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(Path(settings["result"]).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def uninterrupted(observed):
    return observed["orders"]["1 ranks, 0 workers"]


def test_order_is_the_same_for_all_ranks_and_workers(observed, uninterrupted):
    assert [len(step) for step in uninterrupted] == [GLOBAL_BATCH] * 6
    for name, steps in observed["orders"].items():
        assert steps == uninterrupted, name


def test_order_is_blended_and_repeats_nothing_within_an_epoch(uninterrupted, settings):
    text, image = settings["arguments"]["train_paths"]
    keys = [key for step in uninterrupted for key in step]
    from_text = [key for key in keys if key.startswith(text)]
    from_image = [key for key in keys if key.startswith(image)]
    assert (len(from_text), len(from_image)) == (32, 16)
    assert len(set(from_text[:31])) == 31
    assert len(set(from_image)) == 16


@pytest.mark.parametrize("stop", range(1, 6))
def test_resume_goes_on_with_the_next_sample(observed, uninterrupted, stop):
    resumed = observed["resumes"][str(stop)]
    assert resumed["keys"] == uninterrupted
    assert resumed["consumed"] == stop * GLOBAL_BATCH
    assert resumed["consumed_after"] == 6 * GLOBAL_BATCH


def test_resume_with_another_order_is_refused(observed):
    assert observed["refusals"]["same order"] == "accepted"
    for name in ("other seed", "other seed, loaded before setup"):
        assert "made with seed=7" in observed["refusals"][name]
        assert "now it is 8" in observed["refusals"][name]


def test_requests_that_do_not_suit_get_one_sentence(observed, settings):
    for changes in settings["refused"]:
        message = observed["refusals"][json.dumps(changes)]
        assert message != "accepted", changes
        assert "\n" not in message
        # The argument or the value at fault is named.
        names = [name for name in changes if name in message]
        values = [str(value) for value in changes.values() if str(value) in message]
        assert names or values, (changes, message)


def test_limits_that_would_end_or_repeat_training_data_are_refused(observed):
    assert "max_steps of the trainer is -1" in observed["refusals"]['{"max_steps": -1}']
    for limit in (5, 0.5):
        name = json.dumps({"limit_train_batches": limit})
        assert f"limit_train_batches of the trainer is {limit}" in observed["refusals"][name]
    assert "train_paths is empty" in observed["refusals"]["no training files"]


def test_limits_count_steps(observed):
    # 8 samples a step in micro-batches of 2 are 4 micro-batches; half of 20 steps are 10.
    assert observed["limits"] == {
        "train": 1.0,
        "val": 2 * 4,
        "test": 3 * 4,
        "sanity": 4,
        "val_check_interval": 10,
    }


def test_validation_and_test_read_their_own_files_once(observed, settings):
    arguments = settings["arguments"]
    validation = [key for step in observed["evaluation"]["validation"] for key in step]
    expected = [f"{arguments['validation_paths']}#{row}" for row in range(11)]
    assert validation == expected + ["filler"] * 5
    test = [key for step in observed["evaluation"]["test"] for key in step]
    first, second = arguments["test_paths"]
    assert test == [f"{first}#{row}" for row in range(3)] + [f"{second}#{row}" for row in range(5)]


def test_no_evaluation_files_no_loaders(observed):
    assert observed["evaluation"]["none"] == [[], []]


def test_split_parts_share_no_record(observed):
    parts = {
        part: {key for step in steps for key in step} - {"filler"}
        for part, steps in observed["evaluation"]["split"].items()
    }
    assert {part: len(keys) for part, keys in parts.items()} == {
        "train": 16 + 8,
        "validation": (25 - 16) + (14 - 8),
        "test": (31 - 25) + (17 - 14),
    }
    assert len(set.union(*parts.values())) == 31 + 17


@pytest.mark.parametrize("way", ["reinit", "pickle", "config"])
def test_copies_read_the_same(observed, way):
    assert observed["copies"][way] == observed["copies"]["original"]


def test_micro_batches_follow_the_contract(observed):
    for fixed, batch in observed["first_batch"].items():
        rows, length = batch["tokens"][1]
        assert rows == 2
        assert length == 128 if fixed == "True" else length % 8 == 0
        assert batch["tiles"] == ["torch.uint8", [batch["tiles"][1][0], 3, 56, 56]]
        kinds = {name: entry[0] for name, entry in batch.items() if name != "tiles"}
        assert kinds == {
            "tokens": "torch.int64",
            "labels": "torch.int64",
            "position_ids": "torch.int64",
            "loss_mask": "torch.float32",
        }
        assert {tuple(entry[1]) for name, entry in batch.items() if name != "tiles"} == {
            (rows, length)
        }


def test_other_family_is_read_in_the_same_order(observed, uninterrupted, settings):
    other = observed["other_family"]
    assert [key for batch in other["keys"] for key in batch] == sum(uninterrupted[:3], [])
    with_image = settings["arguments"]["train_paths"][1]
    for keys, images, spans, tiles in zip(
        other["keys"], other["images"], other["spans"], other["tiles"], strict=True
    ):
        assert images == [int(key.startswith(with_image)) for key in keys]
        # An image of 56 px is four tiles of 28 px.
        assert tiles == [4 * sum(images), 3, 28, 28]
        assert len(spans) == sum(images)
        assert all(0 < start < end <= 128 for start, end in spans)
    assert {0, 1} == {sum(images) for images in other["images"]}
    assert min(count for batch in other["lengths"] for count in batch) > 0
    validation = [key for step in other["validation"] for key in step]
    expected = [f"{settings['arguments']['validation_paths']}#{row}" for row in range(11)]
    assert validation == expected + ["filler"] * 5
