"""The order of samples, as batches see it: ranks, workers, resume, bad samples, evaluation."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from datamodules.bad_samples import BadSampleLog, TooManyBadSamples, count_bad_samples
from datamodules.blend import Blend
from datamodules.dataset import ENDLESS, EvaluationSamples, TrainingSamples
from datamodules.image_slot_collate import ImageSlotCollator
from datamodules.split import open_sources, split_sources


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_jsonl, make_record):
    """Two sources: 23 records of text and 11 of images."""
    folder = tmp_path_factory.mktemp("records")
    text = [make_record(f"question {number}", f"{number}") for number in range(23)]
    images = [make_record(f"<image>{number}", "A", image="one.png") for number in range(11)]
    return [write_jsonl(folder / "text.jsonl", text), write_jsonl(folder / "image.jsonl", images)]


@pytest.fixture(scope="module")
def make_samples(files, make_encoder, images):
    def make(paths=None, weights=None, seed=7, log=None):
        sources = open_sources(paths or files, images, "image_folder")
        blend = Blend([len(source) for source in sources], weights, seed=seed)
        return TrainingSamples(
            sources, blend, make_encoder(), log or BadSampleLog(None, max_in_a_row=10)
        )

    return make


def keys(samples, start, stop):
    return [samples[number].key for number in range(start, stop)]


def test_keys_name_file_and_row(make_samples, files):
    read = keys(make_samples(), 0, 34)
    assert sorted(read) == sorted(
        [f"{files[0]}#{row}" for row in range(23)] + [f"{files[1]}#{row}" for row in range(11)]
    )


def test_training_data_do_not_end(make_samples):
    samples = make_samples()
    assert len(samples) == ENDLESS
    assert samples[ENDLESS - 1].key


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_order(make_samples, workers):
    expected = keys(make_samples(), 0, 40)
    loader = DataLoader(
        make_samples(),
        batch_sampler=[list(range(start, start + 4)) for start in range(0, 40, 4)],
        num_workers=workers,
        collate_fn=ImageSlotCollator(pad_token_id=0),
    )
    assert [key for batch in loader for key in batch["sample_keys"]] == expected


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, make_record):
    """30 records, of which every third cannot be used, for one reason after the other."""
    folder = tmp_path_factory.mktemp("bad")
    import json

    bad = [
        "{not json",
        json.dumps(make_record("<image>Q", "A", image="none.png")),
        json.dumps(make_record("Q", " ")),
        json.dumps(make_record("Q" * 5000, "A")),
    ]
    lines = [
        bad[(row // 3) % len(bad)] if row % 3 == 0 else json.dumps(make_record(f"Q{row}", "A"))
        for row in range(30)
    ]
    path = folder / "some.jsonl"
    path.write_text("\n".join(lines))
    return [str(path)]


def test_bad_samples_are_replaced_and_listed(make_samples, bad_files, tmp_path):
    log_file = tmp_path / "bad.jsonl"
    samples = make_samples(bad_files, log=BadSampleLog(log_file, 20))
    read = keys(samples, 0, 30)
    good = {f"{bad_files[0]}#{row}" for row in range(30) if row % 3}
    assert set(read) == good  # every good record is there, in its own place
    reasons = {reason for _, reason in count_bad_samples(log_file)}
    assert reasons == {"invalid_json", "missing_image", "empty_answer", "too_long"}
    assert {source for source, _ in count_bad_samples(log_file)} == set(bad_files)


def test_replacements_depend_on_nothing_but_the_number(make_samples, bad_files):
    expected = keys(make_samples(bad_files), 0, 90)
    resumed = make_samples(bad_files)
    assert [resumed[number].key for number in range(40, 90)] == expected[40:]
    backwards = make_samples(bad_files)
    assert [backwards[number].key for number in reversed(range(90))][::-1] == expected
    loader = DataLoader(make_samples(bad_files), batch_size=None, sampler=range(90), num_workers=3)
    assert [sample.key for sample in loader] == expected


def test_good_samples_stay_where_they_are(make_samples, bad_files):
    samples = make_samples(bad_files)
    source = samples.sources[0]
    for number in range(60):
        _, row = samples.blend[number]
        if row % 3:
            assert samples[number].key == source.key(row)


@pytest.fixture
def hopeless_file(tmp_path, write_jsonl, make_record):
    return write_jsonl(tmp_path / "bad.jsonl", [make_record("Q", "")] * 50)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run(make_samples, hopeless_file, workers, tmp_path):
    log = BadSampleLog(tmp_path / "log.jsonl", max_in_a_row=4)
    samples = make_samples([hopeless_file], log=log)
    loader = DataLoader(samples, batch_size=None, sampler=[0], num_workers=workers)
    with pytest.raises(TooManyBadSamples, match="5 samples in a row cannot be used"):
        next(iter(loader))
    assert count_bad_samples(tmp_path / "log.jsonl") == {(hopeless_file, "empty_answer"): 5}


def test_errors_of_the_program_are_not_bad_samples(make_samples, monkeypatch):
    samples = make_samples()
    monkeypatch.setattr(samples.encoder, "plan", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        samples[0]


def test_evaluation_reads_everything_once_and_fills_up(make_encoder, files, images):
    sources = open_sources(files, images, "image_folder")
    samples = EvaluationSamples(sources, make_encoder(), BadSampleLog(None, 5), multiple_of=8)
    assert len(samples) == 40
    read = [samples[number] for number in range(40)]
    assert [sample.key for sample in read[:34]] == [
        f"{path}#{row}" for path, rows in zip(files, (23, 11), strict=True) for row in range(rows)
    ]
    assert all((sample.labels >= 0).any() for sample in read[:34])
    for filler in read[34:]:
        assert (filler.labels == -100).all()
        assert len(filler.tokens) == 1
        assert filler.tiles.shape == (0, 3, 56, 56)
    with pytest.raises(IndexError):
        samples[40]


def test_bad_samples_of_evaluation_count_for_nothing(make_encoder, bad_files, images):
    log = BadSampleLog(None, 5)
    sources = open_sources(bad_files, images, "image_folder")
    samples = EvaluationSamples(sources, make_encoder(), log, multiple_of=2)
    learnt = [bool((samples[number].labels >= 0).any()) for number in range(30)]
    assert learnt == [row % 3 != 0 for row in range(30)]
    assert sum(log.counts.values()) == 10


def rows_by_part(files, images, fractions, seed):
    parts = split_sources(open_sources(files, images, "image_folder"), fractions, seed)
    return {
        part: {
            source.key(position).rsplit("/", 1)[1]
            for source in sources
            for position in range(len(source))
        }
        for part, sources in parts.items()
    }


def test_split_has_no_overlap_and_loses_nothing(files, images):
    parts = rows_by_part(files, images, [0.6, 0.3, 0.1], seed=3)
    everything = {f"text.jsonl#{row}" for row in range(23)}
    everything |= {f"image.jsonl#{row}" for row in range(11)}
    assert set.union(*parts.values()) == everything
    assert sum(len(rows) for rows in parts.values()) == len(everything)
    sizes = {part: len(rows) for part, rows in parts.items()}
    assert sizes == {"train": 14 + 7, "validation": 21 - 14 + 10 - 7, "test": 23 - 21 + 11 - 10}


def test_split_depends_on_its_seed(files, images):
    first = rows_by_part(files, images, [0.6, 0.3, 0.1], seed=3)
    assert rows_by_part(files, images, [0.6, 0.3, 0.1], seed=3) == first
    assert rows_by_part(files, images, [0.6, 0.3, 0.1], seed=4) != first


@pytest.mark.parametrize(
    "fractions", [[0.5, 0.5], [0.5, 0.4, 0.2], [1.2, -0.2, 0.0], [0.0, 0.5, 0.5], [0.01, 0.5, 0.49]]
)
def test_split_that_does_not_suit(files, images, fractions):
    with pytest.raises(ValueError, match="split is"):
        split_sources(open_sources(files, images, "image_folder"), fractions, 0)


def test_folders_of_images(files, images, tmp_path):
    beside = open_sources(files, None, "image_folder")
    assert {str(source.images.folder) for source in beside} == {files[0].rsplit("/", 1)[0]}
    each = open_sources(files, [images, str(tmp_path)], "image_folder")
    assert [str(source.images.folder) for source in each] == [images, str(tmp_path)]
    with pytest.raises(ValueError, match="has 1 folders for 2 files"):
        open_sources(files, [images], "image_folder")
    with pytest.raises(ValueError, match="no such folder"):
        open_sources(files, str(tmp_path / "none"), "image_folder")


def test_weights_change_the_shares(make_samples, files):
    read = keys(make_samples(weights=[1, 3]), 0, 40)
    assert sum(key.startswith(files[1]) for key in read) == 30
    assert np.unique(read).size == 10 + 11
