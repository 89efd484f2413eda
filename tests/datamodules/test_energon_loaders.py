"""Real shards through Energon, without NeMo: order, resume, finiteness, what is skipped and why."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from megatron.energon import WorkerConfig

from datamodules.bad_samples import BadSampleLog, TooManyBadSamples, count_bad_samples
from datamodules.energon_loaders import evaluation_batches, training_batches
from datamodules.energon_shards import open_shards
from datamodules.energon_task import ConversationTask
from datamodules.packing import Room
from datamodules.sample_encoder import open_encoder

data = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("energon_data.py"))))

TRAIN, VALIDATION = 23, 11
MICRO_BATCH = 2


def keys_of(folder: str, split: str, names: list[str], per_shard: int = 5) -> list[str]:
    return [
        f"{folder}/{split}-{number // per_shard}.tar/{name}" for number, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def crude(tmp_path_factory):
    splits = {
        "train": [data.good_sample(number) for number in range(TRAIN)],
        "val": [data.good_sample(number, "v") for number in range(VALIDATION)],
    }
    return data.write_set(tmp_path_factory.mktemp("energon") / "crude", splits)


@pytest.fixture(scope="module")
def train_keys(crude):
    return keys_of(crude, "train", [f"s{number:04d}" for number in range(TRAIN)])


@pytest.fixture(scope="module")
def encoder(assets):
    encoder = open_encoder(assets, 128)
    encoder.prepare()
    return encoder


@pytest.fixture
def make(encoder):
    """Makes a loader; `stop` undoes nothing, loaders end with the test."""

    def make(paths, split="train", *, workers=0, rank=0, ranks=1, seed=7, **options):
        paths = [paths] if isinstance(paths, str) else paths
        training = options.pop("training", True)
        weights = options.pop("weights", None)
        log = options.pop("log", None) or BadSampleLog(None, 100)
        config = WorkerConfig(rank=rank, world_size=ranks, num_workers=workers, seed_offset=seed)
        shards = open_shards(
            paths,
            weights,
            split,
            config,
            training=training,
            max_samples_per_sequence=4 if training else None,
        )
        collate = options.pop("encoder", encoder).collator(8, None)
        task = ConversationTask(
            encoder,
            collate,
            log,
            fill=not training,
            room=Room(positions=128),
            decode_log=options.pop("decode_log", log),
        )
        if training:
            defaults = {"shuffle_buffer_size": 6, "packing_buffer_size": None, "remembered": 8}
            options = defaults | options
            return training_batches(shards, task, config, micro_batch_size=MICRO_BATCH, **options)
        return evaluation_batches(
            shards, task, config, micro_batch_size=MICRO_BATCH, **{"multiple_of": 1, **options}
        )

    return make


def read(loader, count):
    batches = iter(loader)
    return [next(batches)["sample_keys"] for _ in range(count)]


def flat(batches):
    return [key for batch in batches for key in batch]


def test_training_sees_every_sample_once_in_an_epoch_and_has_no_end(make, crude, train_keys):
    # Without a buffer an epoch is the first 23 samples, although they are shuffled.
    keys = flat(read(make(crude, shuffle_buffer_size=0), 46))
    assert sorted(keys[:TRAIN]) == train_keys
    assert keys[:TRAIN] != train_keys
    assert sorted(keys[TRAIN : 2 * TRAIN]) == train_keys
    assert keys[TRAIN : 2 * TRAIN] != keys[:TRAIN]


def test_training_order_depends_on_the_seed_only(make, crude):
    first = read(make(crude), 20)
    assert read(make(crude), 20) == first
    assert read(make(crude, seed=8), 20) != first


def test_ranks_and_workers_share_no_sample(make, crude, train_keys):
    for workers in (0, 2):
        seen = [
            set(flat(read(make(crude, workers=workers, rank=rank, ranks=2), 24)))
            for rank in range(2)
        ]
        assert not seen[0] & seen[1]
        assert seen[0] | seen[1] == set(train_keys)


@pytest.mark.parametrize(
    ("ranks", "workers"), [(1, 0), (1, 1), (1, 3), (2, 0), (2, 3), (4, 1), (4, 3)]
)
@pytest.mark.parametrize("packing", [None, 5])
def test_resume_goes_on_with_the_very_next_sample(make, crude, ranks, workers, packing):
    total = 14 if ranks > 1 else 30
    options = {
        "rank": ranks - 1,
        "ranks": ranks,
        "workers": workers,
        "packing_buffer_size": packing,
    }
    expected = read(make(crude, **options), total)
    for stop in (1, 5, 11) if ranks > 1 else (0, 1, 2, 5, 11, 12, 24):
        loader = make(crude, **options)
        assert read(loader, stop) == expected[:stop]
        place = loader.place_after(stop)
        resumed = make(crude, **options, start=place)
        assert resumed.place_after(0) == place
        rest = read(resumed, total - stop)
        assert rest == expected[stop:], f"{workers} workers, stopped after {stop}"


@pytest.mark.parametrize("packing", [None, 5])
def test_resume_of_a_resumed_run_before_every_worker_has_had_its_turn(make, crude, packing):
    expected = read(make(crude, workers=3, packing_buffer_size=packing), 20)
    place = None
    for number, keys in enumerate(expected):
        loader = make(crude, workers=3, packing_buffer_size=packing, start=place)
        assert read(loader, 1) == [keys], number
        place = loader.place_after(1)


def test_place_of_an_earlier_micro_batch_can_be_told(make, crude):
    expected = read(make(crude, workers=2), 16)
    loader = make(crude, workers=2, remembered=4)
    read(loader, 10)
    for back in range(5):
        resumed = make(crude, workers=2, start=loader.place_after(10 - back))
        assert read(resumed, 6) == expected[10 - back : 16 - back]
    with pytest.raises(AssertionError):
        loader.place_after(5)


def test_packed_rows_lose_and_repeat_nothing(make, crude, train_keys):
    loader = make(crude, packing_buffer_size=5, shuffle_buffer_size=0)
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


def test_a_damaged_image_makes_a_packed_row_shorter(make, tmp_path):
    samples = [data.good_sample(number) for number in range(12)]
    damaged = [sample for sample in samples if "jpg" in sample][::2]
    for sample in damaged:
        sample["jpg"] = sample["jpg"][:400]
    folder = data.write_set(tmp_path / "some", {"train": samples})
    log = BadSampleLog(tmp_path / "bad.jsonl", 100)
    loader = make(folder, packing_buffer_size=4, log=log, decode_log=log)
    keys = flat(read(loader, 12))
    names = {sample["__key__"] for sample in damaged}
    assert {key.rpartition("/")[2] for key in keys} == {
        sample["__key__"] for sample in samples
    } - names
    assert set(count_bad_samples(tmp_path / "bad.jsonl")) == {(folder, "unreadable_image")}


def test_asking_again_for_an_iterator_goes_on(make, crude):
    expected = read(make(crude), 8)
    loader = make(crude)
    assert read(loader, 3) + read(loader, 5) == expected


def test_resume_on_other_shards_is_refused(make, crude, tmp_path):
    samples = [data.good_sample(number) for number in range(TRAIN)]
    other = data.write_set(tmp_path / "other", {"train": samples}, per_shard=23)
    loader = make(crude)
    read(loader, 5)
    with pytest.raises(ValueError, match="place of the training data in the checkpoint"):
        make(other, start=loader.place_after(5))
    with pytest.raises(ValueError, match="place of the training data in the checkpoint"):
        make(crude, workers=2, start=loader.place_after(5))


@pytest.fixture(scope="module")
def blend(tmp_path_factory, crude):
    folder = tmp_path_factory.mktemp("blend")
    splits = {
        split: [data.good_sample(number, split[0]) for number in range(12)]
        for split in ("train", "val")
    }
    small = data.write_set(folder / "small", splits)
    parts = [(crude, 3.0), (small, 1.0)]
    return small, data.write_blend(folder / "blend.yaml", {"train": parts, "val": parts})


def test_blends_follow_their_weights(make, blend, crude):
    small, file = blend
    for paths, weights, share in (
        (file, None, 0.75),
        ([crude, small], [1.0, 3.0], 0.25),
        ([crude, small], None, TRAIN / (TRAIN + 12)),
        ([file, small], [1.0, 1.0], 0.375),
    ):
        keys = flat(read(make(paths, weights=weights), 200))
        found = sum(key.startswith(f"{crude}/") for key in keys) / len(keys)
        # 400 draws: three standard deviations are at most 0.075.
        assert abs(found - share) < 0.075, (paths, weights)


@pytest.mark.parametrize("packing", [None, 5])
def test_blend_resumes_exactly(make, blend, packing):
    _, file = blend
    for workers in (0, 2):
        options = {"workers": workers, "packing_buffer_size": packing}
        expected = read(make(file, **options), 30)
        loader = make(file, **options)
        read(loader, 13)
        resumed = make(file, **options, start=loader.place_after(13))
        assert read(resumed, 17) == expected[13:]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_validation_sees_every_sample_once_on_all_ranks(make, crude, ranks, workers):
    expected = keys_of(crude, "val", [f"v{number:04d}" for number in range(VALIDATION)])
    passes = []
    for _ in range(2):
        world = []
        for rank in range(ranks):
            loader = make(
                crude,
                "val",
                training=False,
                rank=rank,
                ranks=ranks,
                workers=workers,
                multiple_of=2,
            )
            batches = list(loader)
            assert len(batches) == len(loader)
            assert all(len(batch["sample_keys"]) == MICRO_BATCH for batch in batches)
            assert all(batch["tokens"].shape[0] == MICRO_BATCH for batch in batches)
            for batch in batches:
                for row, key in enumerate(batch["sample_keys"]):
                    assert bool(batch["loss_mask"][row].sum() > 0) == (key != "filler")
            world.append([batch["sample_keys"] for batch in batches])
        passes.append(world)
    assert passes[0] == passes[1]
    assert {len(batches) % 2 for batches in passes[0]} == {0}
    assert len({len(batches) for batches in passes[0]}) == 1
    keys = [key for batches in passes[0] for key in flat(batches) if key != "filler"]
    assert sorted(keys) == expected
    if workers == 0 and ranks == 1:
        assert keys == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_of_validation_that_was_left_half_way_starts_again(make, crude, blend, workers):
    for path in (crude, blend[1]):
        loader = make(path, "val", training=False, workers=workers)
        whole = [batch["sample_keys"] for batch in loader]
        batches = iter(loader)
        assert [next(batches)["sample_keys"] for _ in range(3)] == whole[:3]
        assert [batch["sample_keys"] for batch in loader] == whole


def test_images_reach_the_batch_as_they_are_in_the_shard(make, crude, encoder, train_keys):
    import io

    import numpy as np
    from PIL import Image

    loader = make(crude)
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


def test_vqa_samples_give_the_same_batches_as_crude_ones(make, tmp_path):
    samples = [data.good_sample(3 * number) for number in range(9)]  # all with an image
    loaders = [
        make(data.write_set(tmp_path / name, {"train": samples}, config))
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
def test_bad_samples_are_skipped_listed_and_counted(make, tmp_path, workers):
    folder = data.write_set(tmp_path / "bad", {"train": bad_samples()}, per_shard=4)
    listed = tmp_path / "list.jsonl"
    log = BadSampleLog(listed, 10)
    keys = flat(read(make(folder, workers=workers, log=log, shuffle_buffer_size=0), 12))
    assert {key.rpartition("/")[2] for key in keys} == {"s0000", "s0001", "s0006", "s0007"}
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {entry["key"].rpartition("/")[2]: entry["reason"] for entry in entries} == REASONS
    assert {entry["source"] for entry in entries} == {folder}
    assert set(count_bad_samples(listed)) == {(folder, reason) for reason in REASONS.values()}


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_among_bad_samples_is_exact(make, tmp_path, workers):
    folder = data.write_set(tmp_path / "bad", {"train": bad_samples()}, per_shard=4)
    expected = read(make(folder, workers=workers), 20)
    for stop in range(1, 8):
        loader = make(folder, workers=workers)
        read(loader, stop)
        resumed = make(folder, workers=workers, start=loader.place_after(stop))
        assert read(resumed, 10) == expected[stop : stop + 10]


def test_bad_samples_of_validation_become_fillers_in_their_place(make, tmp_path):
    folder = data.write_set(tmp_path / "bad", {"val": bad_samples()})
    batches = list(make(folder, "val", training=False))
    learnt = {
        key.rpartition("/")[2]: bool(batch["loss_mask"][row].sum() > 0)
        for batch in batches
        for row, key in enumerate(batch["sample_keys"])
    }
    names = ["s0000", "s0001", "nojson", "s0003", "garbage", "two", "s0006", "s0007"]
    assert list(learnt) == names
    assert {name for name in names if not learnt[name]} == set(REASONS)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_in_a_row_stop_the_run(make, tmp_path, workers):
    samples = [{"__key__": f"bad{number}", "json": b"{"} for number in range(8)]
    folder = data.write_set(tmp_path / "bad", {"train": samples})
    with pytest.raises(TooManyBadSamples, match="max_bad_samples_in_a_row=5"):
        next(make(folder, workers=workers, log=BadSampleLog(None, 5)))


@pytest.mark.parametrize("broken", [RuntimeError, NameError, KeyError, AssertionError, MemoryError])
@pytest.mark.parametrize("place", ["encode", "collate"])
def test_every_other_error_stops_the_run(make, crude, encoder, monkeypatch, place, broken):
    def fail(*_arguments):
        raise broken("our own bug")

    if place == "encode":
        monkeypatch.setattr(type(encoder), "encode", fail)
        loader = make(crude)
    else:
        loader = make(crude, encoder=SimpleNamespace(collator=lambda *_: fail))
    with pytest.raises(Exception, match="our own bug|failed") as caught:  # noqa: PT011
        next(loader)
    assert len(str(caught.value)) < 1000


def test_damaged_images_of_vqa_samples_are_bad_samples(make, tmp_path):
    samples = [data.good_sample(3 * number) for number in range(6)]
    samples[2]["jpg"] = b"no image at all"
    folder = data.write_set(tmp_path / "vqa", {"train": samples}, data.VQA)
    log = BadSampleLog(None, 10)
    keys = flat(read(make(folder, log=log, shuffle_buffer_size=0), 6))
    assert f"{folder}/train-0.tar/s0006" not in keys
    assert set(log.counts) == {(folder, "unreadable_image")}


def test_errors_of_a_users_sample_loader_stop_the_run(make, tmp_path):
    samples = [data.good_sample(number) for number in range(4)]  # the third has no image
    folder = data.write_set(tmp_path / "vqa", {"train": samples}, data.VQA)
    with pytest.raises(KeyError, match="jpg"):
        read(make(folder), 4)


def test_a_shard_that_was_cut_short_stops_the_run(make, tmp_path):
    samples = [data.good_sample(3 * number) for number in range(10)]
    folder = data.write_set(tmp_path / "cut", {"train": samples}, per_shard=10)
    shard = Path(folder) / "train-0.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(Exception, match="train-0.tar|unexpected end|truncated|read"):  # noqa: PT011
        read(make(folder), 10)


def refusal(paths, split="train", **options):
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    with pytest.raises(ValueError, match=r"\.$") as caught:
        open_shards([str(path) for path in paths], None, split, config, training=True, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_cannot_be_opened_gets_one_sentence(crude, tmp_path):
    assert "There is no data set" in refusal([tmp_path / "missing"])
    raw = data.write_set(tmp_path / "raw", {"train": [data.good_sample(0)]}, prepared=False)
    assert f"run `energon prepare {raw}` first" in refusal([raw])
    assert "has no split 'dev', only train, val" in refusal([crude], "dev")
    assert "has no split 'test'" in refusal([crude], "test")
    kind = {
        "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
        "field_map": {"image": "jpg", "caption": "json"},
    }
    other = data.write_set(tmp_path / "other", {"train": [data.good_sample(0)]}, kind)
    assert "samples of type CaptioningSample" in refusal([other])
    blend = data.write_blend(tmp_path / "blend.yaml", {"train": [(str(tmp_path / "gone"), 1.0)]})
    assert "gone" in refusal([blend])
    found = data.write_blend(tmp_path / "found.yaml", {"train": [(crude, 1.0)]})
    assert "asked for 'val'" in refusal([found], "val")
    (tmp_path / "broken.yaml").write_text("splits: [")
    assert "cannot be opened" in refusal([tmp_path / "broken.yaml"])


def test_fewer_samples_than_readers_are_refused(make, tmp_path):
    folder = data.write_set(tmp_path / "few", {"train": [data.good_sample(n) for n in range(3)]})
    with pytest.raises(ValueError, match=r"has 3 sample\(s\), but must have one for each of 4"):
        make(folder, workers=2, ranks=2)
