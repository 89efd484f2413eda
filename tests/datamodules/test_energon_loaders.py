"""Real shards through Energon, without NeMo: order, resume, blends, finiteness."""

import pytest

from tests.datamodules import energon_data as data
from tests.datamodules.energon_data import MICRO_BATCH, TRAIN, VALIDATION, flat, keys_of, read


def test_training_sees_every_sample_once_in_an_epoch_and_has_no_end(
    make_energon, crude, train_keys
):
    # Without a buffer an epoch is the first 23 samples, although they are shuffled.
    keys = flat(read(make_energon(crude, shuffle_buffer_size=0), 46))
    assert sorted(keys[:TRAIN]) == train_keys
    assert keys[:TRAIN] != train_keys
    assert sorted(keys[TRAIN : 2 * TRAIN]) == train_keys
    assert keys[TRAIN : 2 * TRAIN] != keys[:TRAIN]


def test_training_order_depends_on_the_seed_only(make_energon, crude):
    first = read(make_energon(crude), 20)
    assert read(make_energon(crude), 20) == first
    assert read(make_energon(crude, seed=8), 20) != first


def test_ranks_and_workers_share_no_sample(make_energon, crude, train_keys):
    for workers in (0, 2):
        seen = [
            set(flat(read(make_energon(crude, workers=workers, rank=rank, ranks=2), 24)))
            for rank in range(2)
        ]
        assert not seen[0] & seen[1]
        assert seen[0] | seen[1] == set(train_keys)


@pytest.mark.parametrize(
    ("ranks", "workers"), [(1, 0), (1, 1), (1, 3), (2, 0), (2, 3), (4, 1), (4, 3)]
)
@pytest.mark.parametrize("packing", [None, 5])
def test_resume_goes_on_with_the_very_next_sample(make_energon, crude, ranks, workers, packing):
    total = 14 if ranks > 1 else 30
    options = {
        "rank": ranks - 1,
        "ranks": ranks,
        "workers": workers,
        "packing_buffer_size": packing,
    }
    expected = read(make_energon(crude, **options), total)
    for stop in (1, 5, 11) if ranks > 1 else (0, 1, 2, 5, 11, 12, 24):
        loader = make_energon(crude, **options)
        assert read(loader, stop) == expected[:stop]
        place = loader.place_after(stop)
        resumed = make_energon(crude, **options, start=place)
        assert resumed.place_after(0) == place
        rest = read(resumed, total - stop)
        assert rest == expected[stop:], f"{workers} workers, stopped after {stop}"


@pytest.mark.parametrize("packing", [None, 5])
def test_resume_of_a_resumed_run_before_every_worker_has_had_its_turn(make_energon, crude, packing):
    expected = read(make_energon(crude, workers=3, packing_buffer_size=packing), 20)
    place = None
    for number, keys in enumerate(expected):
        loader = make_energon(crude, workers=3, packing_buffer_size=packing, start=place)
        assert read(loader, 1) == [keys], number
        place = loader.place_after(1)


def test_place_of_an_earlier_micro_batch_can_be_told(make_energon, crude):
    expected = read(make_energon(crude, workers=2), 16)
    loader = make_energon(crude, workers=2, remembered=4)
    read(loader, 10)
    for back in range(5):
        resumed = make_energon(crude, workers=2, start=loader.place_after(10 - back))
        assert read(resumed, 6) == expected[10 - back : 16 - back]
    with pytest.raises(AssertionError):
        loader.place_after(5)


def test_asking_again_for_an_iterator_goes_on(make_energon, crude):
    expected = read(make_energon(crude), 8)
    loader = make_energon(crude)
    assert read(loader, 3) + read(loader, 5) == expected


def test_resume_on_other_shards_is_refused(make_energon, crude, tmp_path):
    samples = [data.good_sample(number) for number in range(TRAIN)]
    other = data.write_set(tmp_path / "other", {"train": samples}, per_shard=23)
    loader = make_energon(crude)
    read(loader, 5)
    with pytest.raises(ValueError, match="place of the training data in the checkpoint"):
        make_energon(other, start=loader.place_after(5))
    with pytest.raises(ValueError, match="place of the training data in the checkpoint"):
        make_energon(crude, workers=2, start=loader.place_after(5))


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


def test_blends_follow_their_weights(make_energon, blend, crude):
    small, file = blend
    for paths, weights, share in (
        (file, None, 0.75),
        ([crude, small], [1.0, 3.0], 0.25),
        ([crude, small], None, TRAIN / (TRAIN + 12)),
        ([file, small], [1.0, 1.0], 0.375),
    ):
        keys = flat(read(make_energon(paths, weights=weights), 200))
        found = sum(key.startswith(f"{crude}/") for key in keys) / len(keys)
        # 400 draws: three standard deviations are at most 0.075.
        assert abs(found - share) < 0.075, (paths, weights)


@pytest.mark.parametrize("packing", [None, 5])
def test_blend_resumes_exactly(make_energon, blend, packing):
    _, file = blend
    for workers in (0, 2):
        options = {"workers": workers, "packing_buffer_size": packing}
        expected = read(make_energon(file, **options), 30)
        loader = make_energon(file, **options)
        read(loader, 13)
        resumed = make_energon(file, **options, start=loader.place_after(13))
        assert read(resumed, 17) == expected[13:]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_validation_sees_every_sample_once_on_all_ranks(make_energon, crude, ranks, workers):
    expected = keys_of(crude, "val", [f"v{number:04d}" for number in range(VALIDATION)])
    passes = []
    for _ in range(2):
        world = []
        for rank in range(ranks):
            loader = make_energon(
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
def test_a_pass_of_validation_that_was_left_half_way_starts_again(
    make_energon, crude, blend, workers
):
    for path in (crude, blend[1]):
        loader = make_energon(path, "val", training=False, workers=workers)
        whole = [batch["sample_keys"] for batch in loader]
        batches = iter(loader)
        assert [next(batches)["sample_keys"] for _ in range(3)] == whole[:3]
        assert [batch["sample_keys"] for batch in loader] == whole
