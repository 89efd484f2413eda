"""Packed rows of shards: nothing lost, nothing twice; their resume is in test_energon_loaders."""

from datamodules.bad_samples import BadSampleLog, count_bad_samples
from tests.datamodules import energon_data as data
from tests.datamodules.energon_data import MICRO_BATCH, TRAIN, flat, read


def test_packed_rows_lose_and_repeat_nothing(make_energon, crude, train_keys):
    loader = make_energon(crude, packing_buffer_size=5, shuffle_buffer_size=0)
    batches = iter(loader)
    keys = []
    while len(keys) < 3 * TRAIN:
        batch = next(batches)
        bounds = batch["cu_seqlens"].tolist()
        assert batch["tokens"].shape[1] <= MICRO_BATCH * 128
        assert bounds[-1] == batch["tokens"].shape[1]
        keys += batch["sample_keys"]
    # All but those that wait in the buffer have come as often as there were epochs.
    counts = [keys.count(key) for key in train_keys]
    assert set(keys) == set(train_keys)
    assert max(counts) - min(counts) <= 2
    assert sum(counts) == len(keys)


def test_a_damaged_image_makes_a_packed_row_shorter(make_energon, tmp_path):
    samples = [data.good_sample(number) for number in range(12)]
    damaged = [sample for sample in samples if "jpg" in sample][::2]
    for sample in damaged:
        sample["jpg"] = sample["jpg"][:400]
    folder = data.write_set(tmp_path / "some", {"train": samples})
    log = BadSampleLog(tmp_path / "bad.jsonl", 100)
    loader = make_energon(folder, packing_buffer_size=4, log=log, decode_log=log)
    keys = flat(read(loader, 12))
    names = {sample["__key__"] for sample in damaged}
    assert {key.rpartition("/")[2] for key in keys} == {
        sample["__key__"] for sample in samples
    } - names
    assert set(count_bad_samples(tmp_path / "bad.jsonl")) == {(folder, "unreadable_image")}
