"""What becomes of the samples of shards: images, bad ones, errors."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from datamodules.bad_samples import BadSampleLog, TooManyBadSamples, count_bad_samples
from tests.datamodules import energon_data as data
from tests.datamodules.energon_data import flat, read


def test_images_reach_the_batch_as_they_are_in_the_shard(
    make_energon, crude, energon_encoder, train_keys
):
    import io

    import numpy as np
    from PIL import Image

    loader = make_energon(crude)
    for _ in range(10):
        batch = next(loader)
        tiles = iter(batch["tiles"].numpy())
        for key in batch["sample_keys"]:
            number = train_keys.index(key)
            if number % 3 == 2:
                continue
            # The image is as large as a tile, so nothing is resized.
            with Image.open(io.BytesIO(data.encoded_image(number))) as image:
                expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            assert (next(tiles) == expected).all()
        assert next(tiles, None) is None


def test_vqa_samples_give_the_same_batches_as_crude_ones(make_energon, tmp_path):
    samples = [data.good_sample(3 * number) for number in range(9)]  # all with an image
    loaders = [
        make_energon(data.write_set(tmp_path / name, {"train": samples}, config))
        for name, config in (("crude", data.CRUDE), ("vqa", data.VQA))
    ]
    for _ in range(10):
        first, second = (next(loader) for loader in loaders)
        # Only the folder differs.
        assert [key.split("/")[-1] for key in first["sample_keys"]] == [
            key.split("/")[-1] for key in second["sample_keys"]
        ]
        for name in ("tokens", "labels", "loss_mask", "tiles"):
            assert (first[name] == second[name]).all(), name


def test_images_that_are_matched_to_texts(make_energon, tmp_path, energon_encoder):
    samples = [data.good_sample(3 * number) for number in range(4)]
    folder = data.write_set(tmp_path / "matched", {"train": samples}, data.MATCHED)
    batch = next(make_energon(folder, shuffle_buffer_size=0))
    assert batch["tiles"].shape[0] == 2
    row = batch["tokens"][0]
    text = energon_encoder.assets.tokenizer.decode(row[row != energon_encoder.pad_token_id])
    name = batch["sample_keys"][0].rpartition("/")[2]
    assert text.startswith(f"What is {name}? It is {name}.\n<image>")
    # All of the text is learnt but its first token, and no place of an image.
    learnt = batch["labels"][0]
    learnt = energon_encoder.assets.tokenizer.decode(learnt[learnt >= 0])
    assert learnt.endswith(f"is {name}? It is {name}.\n<|im_end|>")


def bad_samples():
    """Good ones at 0, 1, 6, 7 and at the end; one of each kind of damage in between."""
    broken = data.good_sample(3)
    broken["jpg"] = broken["jpg"][:200]
    return [
        data.good_sample(0),
        data.good_sample(1),
        {"__key__": "nojson", "jpg": data.encoded_image(0)},
        broken,
        {"__key__": "garbage", "json": b"{"},
        {"__key__": "two", "json": json.dumps(data.conversation("two")).encode()},
        data.good_sample(6),
        data.good_sample(7),
    ]


REASONS = {
    "nojson": "missing_key",
    "s0003": "unreadable_image",
    "garbage": "invalid_json",
    "two": "image_count",
}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_skipped_listed_and_counted(make_energon, tmp_path, workers):
    folder = data.write_set(tmp_path / "bad", {"train": bad_samples()}, per_shard=4)
    listed = tmp_path / "list.jsonl"
    log = BadSampleLog(listed, 10)
    keys = flat(read(make_energon(folder, workers=workers, log=log, shuffle_buffer_size=0), 12))
    assert {key.rpartition("/")[2] for key in keys} == {"s0000", "s0001", "s0006", "s0007"}
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {entry["key"].rpartition("/")[2]: entry["reason"] for entry in entries} == REASONS
    assert {entry["source"] for entry in entries} == {folder}
    assert set(count_bad_samples(listed)) == {(folder, reason) for reason in REASONS.values()}


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_among_bad_samples_is_exact(make_energon, tmp_path, workers):
    folder = data.write_set(tmp_path / "bad", {"train": bad_samples()}, per_shard=4)
    expected = read(make_energon(folder, workers=workers), 20)
    for stop in range(1, 8):
        loader = make_energon(folder, workers=workers)
        read(loader, stop)
        resumed = make_energon(folder, workers=workers, start=loader.place_after(stop))
        assert read(resumed, 10) == expected[stop : stop + 10]


def test_bad_samples_of_validation_become_fillers_in_their_place(make_energon, tmp_path):
    folder = data.write_set(tmp_path / "bad", {"val": bad_samples()})
    batches = list(make_energon(folder, "val", training=False))
    learnt = {
        key.rpartition("/")[2]: bool(batch["loss_mask"][row].sum() > 0)
        for batch in batches
        for row, key in enumerate(batch["sample_keys"])
    }
    names = ["s0000", "s0001", "nojson", "s0003", "garbage", "two", "s0006", "s0007"]
    assert list(learnt) == names
    assert {name for name in names if not learnt[name]} == set(REASONS)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_in_a_row_stop_the_run(make_energon, tmp_path, workers):
    samples = [{"__key__": f"bad{number}", "json": b"{"} for number in range(8)]
    folder = data.write_set(tmp_path / "bad", {"train": samples})
    with pytest.raises(TooManyBadSamples, match="max_bad_samples_in_a_row=5"):
        next(make_energon(folder, workers=workers, log=BadSampleLog(None, 5)))


@pytest.mark.parametrize("broken", [RuntimeError, NameError, KeyError, AssertionError, MemoryError])
@pytest.mark.parametrize("place", ["encode", "collate"])
def test_every_other_error_stops_the_run(
    make_energon, crude, energon_encoder, monkeypatch, place, broken
):
    def fail(*_arguments):
        raise broken("our own bug")

    if place == "encode":
        monkeypatch.setattr(type(energon_encoder), "encode", fail)
        loader = make_energon(crude)
    else:
        loader = make_energon(crude, encoder=SimpleNamespace(collator=lambda *_: fail))
    with pytest.raises(Exception, match="our own bug|failed") as caught:  # noqa: PT011
        next(loader)
    assert len(str(caught.value)) < 1000


def test_damaged_images_of_vqa_samples_are_bad_samples(make_energon, tmp_path):
    samples = [data.good_sample(3 * number) for number in range(6)]
    samples[2]["jpg"] = b"no image at all"
    folder = data.write_set(tmp_path / "vqa", {"train": samples}, data.VQA)
    log = BadSampleLog(None, 10)
    keys = flat(read(make_energon(folder, log=log, shuffle_buffer_size=0), 6))
    assert f"{folder}/train-0.tar/s0006" not in keys
    assert set(log.counts) == {(folder, "unreadable_image")}


def test_errors_of_a_users_sample_loader_stop_the_run(make_energon, tmp_path):
    samples = [data.good_sample(number) for number in range(4)]  # the third has no image
    folder = data.write_set(tmp_path / "vqa", {"train": samples}, data.VQA)
    with pytest.raises(KeyError, match="jpg"):
        read(make_energon(folder), 4)


def test_a_shard_that_was_cut_short_stops_the_run(make_energon, tmp_path):
    samples = [data.good_sample(3 * number) for number in range(10)]
    folder = data.write_set(tmp_path / "cut", {"train": samples}, per_shard=10)
    shard = Path(folder) / "train-0.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(Exception, match="train-0.tar|unexpected end|truncated|read"):  # noqa: PT011
        read(make_energon(folder), 10)
