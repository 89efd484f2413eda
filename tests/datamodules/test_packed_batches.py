"""The order of packed training: lanes, ranks, workers, stops, damaged images."""

from dataclasses import replace

import pytest

from datamodules.bad_samples import BadSampleLog, TooManyBadSamples, count_bad_samples
from datamodules.blend import Blend
from datamodules.dataset import TrainingSamples
from datamodules.lanes import Lane, LaneState
from datamodules.packed_batches import PackedBatches, PackedStream, PackingSettings
from datamodules.packing import Room
from datamodules.split import open_sources

ROWS = 8
STEPS = 5
SETTINGS = PackingSettings(
    rows_per_step=ROWS,
    rows_per_micro_batch=1,
    rank=0,
    ranks=1,
    buffer_size=6,
    room=Room(positions=200, tiles=6),
    seed=3,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_jsonl, make_record):
    """Three sources: short and long texts, one-tile images, and images of four tiles."""
    folder = tmp_path_factory.mktemp("records")
    texts = [make_record("word " * (number % 9 + 1), f"{number}") for number in range(37)]
    images = [make_record(f"<image>{number}", "A", image="one.png") for number in range(17)]
    wide = [make_record(f"<image>{number}", "A", image="wide.png") for number in range(11)]
    return [
        write_jsonl(folder / f"{name}.jsonl", records)
        for name, records in (("text", texts), ("image", images), ("wide", wide))
    ]


@pytest.fixture(scope="module")
def make_batches(files, make_encoder, images):
    def make(
        rank=0,
        ranks=1,
        rows_per_micro_batch=1,
        workers=0,
        states=None,
        weights=None,
        paths=None,
        logs=None,
    ):
        settings = replace(
            SETTINGS, rank=rank, ranks=ranks, rows_per_micro_batch=rows_per_micro_batch
        )
        encoder = make_encoder(seq_length=200, max_tiles_per_sample=6)
        sources = open_sources(paths or files, images, "image_folder")
        blend = Blend([len(source) for source in sources], weights, seed=7)
        log, decode_log = logs or (BadSampleLog(None, 10), BadSampleLog(None, 10))
        stream = PackedStream(
            TrainingSamples(sources, blend, encoder, log),
            encoder.collator(8, None),
            settings,
            states or {},
            decode_log,
        )
        return PackedBatches(stream, num_workers=workers, pin_memory=False)

    return make


def take(batches, steps):
    """The sample keys of every row, by step and lane."""
    settings = batches._stream.settings
    rows = {}
    for step in range(steps):
        for number in range(settings.micro_batches):
            batch = next(batches)
            lanes = settings.lanes(number)
            for lane, keys in zip(lanes, keys_by_row(batch, len(lanes)), strict=True):
                rows[step, lane] = keys
    return rows


def keys_by_row(batch, rows):
    """Splits the keys of a packed micro-batch of rows that are equally long."""
    length = batch["tokens"].shape[1] // rows
    keys = iter(batch["sample_keys"])
    found = [[] for _ in range(rows)]
    bounds = batch["cu_seqlens"].tolist()
    for start, end in zip(bounds, bounds[1:], strict=False):
        if (batch["labels"][0, start:end] != -100).any():  # not the rest of a row
            found[start // length].append(next(keys))
    assert next(keys, None) is None
    padding = sum(
        end - start
        for start, end in zip(bounds, bounds[1:], strict=False)
        if not (batch["labels"][0, start:end] != -100).any()
    )
    assert batch["num_tokens"] == rows * length - padding
    return found


@pytest.fixture(scope="module")
def expected(make_batches):
    return take(make_batches(), STEPS)


def test_every_sample_of_an_epoch_comes_once(make_batches, files):
    rows = take(make_batches(), 30)
    seen = [key for _, row in sorted(rows.items()) for key in row]
    in_first_epoch = {f"{files[0]}#{row}" for row in range(37)}
    assert in_first_epoch <= set(seen)
    numbers = [
        lane.sample_number(turn)
        for lane in (make_lane(number) for number in range(ROWS))
        for turn in range(50)
    ]
    assert sorted(numbers) == list(range(ROWS * 50))


def make_lane(number):
    return Lane(
        number=number, lanes=ROWS, seed=3, buffer_size=1, room=SETTINGS.room, plan=lambda given: 0
    )


def test_rows_hold_what_has_room(make_batches):
    batches = make_batches()
    filled = 0
    for _ in range(40):
        batch = next(batches)
        assert batch["tokens"].shape[1] <= 200
        assert len(batch["tiles"]) <= 6
        filled += len(batch["sample_keys"])
    assert filled > 2 * 40


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ranks_and_workers_do_not_change_the_order(make_batches, expected, ranks, workers):
    rows = {}
    for rank in range(ranks):
        rows |= take(make_batches(rank=rank, ranks=ranks, workers=workers), STEPS)
    assert rows == expected


@pytest.mark.parametrize(("ranks", "size"), [(1, 2), (2, 4), (4, 2), (1, 8)])
def test_the_micro_batch_does_not_change_the_samples_of_a_step(make_batches, expected, ranks, size):
    for_step = [set() for _ in range(STEPS)]
    for rank in range(ranks):
        batches = make_batches(rank=rank, ranks=ranks, rows_per_micro_batch=size)
        for number in range(STEPS * batches._stream.settings.micro_batches):
            step = number // batches._stream.settings.micro_batches
            for_step[step] |= set(next(batches)["sample_keys"])
    for step, keys in enumerate(for_step):
        wanted = {key for (at, _), row in expected.items() if at == step for key in row}
        assert keys == wanted, step


@pytest.mark.parametrize("stop", range(1, STEPS))
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 3), (4, 1)])
def test_a_stop_at_any_step_goes_on_at_the_next_sample(
    make_batches, expected, stop, ranks, workers
):
    states = {}
    for rank in range(2):  # stopped on two ranks without workers, goes on elsewhere
        first = make_batches(rank=rank, ranks=2)
        before = take(first, stop)
        assert before == {place: expected[place] for place in before}
        # Some of the next step may have been read already.
        next(first)
        states |= first.states_after(stop)
    assert sorted(states) == list(range(ROWS))
    assert all(state.rows == stop for state in states.values())
    rows = {}
    for rank in range(ranks):
        resumed = make_batches(rank=rank, ranks=ranks, workers=workers, states=states)
        assert resumed.states_after(0) == {
            lane: state for lane, state in states.items() if lane in resumed.states_after(0)
        }
        rows |= take(resumed, STEPS - stop)
    assert rows == {
        (step - stop, lane): row for (step, lane), row in expected.items() if step >= stop
    }


def test_weights_are_kept_although_lengths_differ(make_batches, files):
    batches = make_batches(weights=[0.2, 0.5, 0.3])
    keys = [key for _ in range(400) for key in next(batches)["sample_keys"]]
    shares = [sum(key.startswith(file) for key in keys) / len(keys) for file in files]
    # Every lane has at most a buffer of six samples that are drawn and not given.
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=ROWS * 6 / len(keys))


def test_a_damaged_image_makes_its_row_shorter(
    make_batches, make_record, write_jsonl, images, tmp_path
):
    from pathlib import Path

    whole = (Path(images) / "one.png").read_bytes()
    (Path(images) / "cut.png").write_bytes(whole[: len(whole) // 2])
    records = [
        make_record(f"<image>{number}", "A", image="cut.png" if number % 3 == 0 else "one.png")
        for number in range(30)
    ]
    path = write_jsonl(tmp_path / "some.jsonl", records)
    log = BadSampleLog(tmp_path / "bad.jsonl", 10)
    rows = take(make_batches(paths=[path], logs=(log, log)), 4)
    read = {key for row in rows.values() for key in row}
    assert read
    assert all(int(key.rpartition("#")[2]) % 3 for key in read)
    counted = count_bad_samples(tmp_path / "bad.jsonl")
    assert set(counted) == {(path, "unreadable_image")}


def test_too_many_damaged_images_stop_the_run(
    make_batches, make_record, write_jsonl, images, tmp_path
):
    from pathlib import Path

    whole = (Path(images) / "one.png").read_bytes()
    (Path(images) / "cut.png").write_bytes(whole[: len(whole) // 2])
    records = [make_record(f"<image>{number}", "A", image="cut.png") for number in range(30)]
    path = write_jsonl(tmp_path / "all.jsonl", records)
    batches = make_batches(paths=[path])
    with pytest.raises(TooManyBadSamples, match="11 samples in a row cannot be used"):
        [next(batches) for _ in range(3 * ROWS)]


def test_states_are_plain_numbers(make_batches):
    batches = make_batches()
    take(batches, 2)
    for state in batches.states_after(2).values():
        assert state.rows == 2
        assert isinstance(state, LaneState)
        assert len(state.waiting) < SETTINGS.buffer_size
        assert list(state.waiting) == sorted(state.waiting)
        assert max(state.waiting) < state.drawn
