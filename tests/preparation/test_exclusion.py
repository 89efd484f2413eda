"""Lists that training wrote, given back to prepare."""

import io
import json

import pytest

from datamodules.bad_samples import BadSampleLog
from preparation.engine import Preparation
from preparation.formats import FORMATS
from sample_loaders.errors import BadSample, Reason
from tests.preparation.toy_source import (
    TOY,
    caption,
    encoded,
    picture,
    request,
    write_llava_source,
    write_source,
)


def run(options, row=TOY):
    return Preparation(row, options, io.StringIO()).run()


def kept_and_excluded(out):
    from megatron.energon import Cooker, TaskEncoder, WorkerConfig, get_loader, get_val_dataset

    class Task(TaskEncoder):
        cookers = (Cooker(cook=lambda sample: sample),)

        def encode_sample(self, sample):
            return sample

        def batch(self, samples):
            return samples[0]

    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = get_val_dataset(
        out,
        split_part="train",
        worker_config=config,
        batch_size=1,
        task_encoder=Task(),
        dataset_config="crude.yaml",
    )
    samples = {
        json.loads(sample["json"])["source_key"]: sample["__key__"]
        for sample in get_loader(dataset)
    }
    lines = (out / "rejected.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return samples, [entry["key"] for entry in entries if entry["reason"] == "excluded"]


BAD = BadSample(Reason.TOO_LONG, "It is too long.")


def test_samples_that_training_lists_from_shards_are_left_out_of_the_next_ones(tmp_path):
    records = [caption(f"caption {n}", encoded(picture(n))) for n in range(6)]
    source = write_source(tmp_path / "source", [records[:3], records[3:]])
    run(request(source, tmp_path / "first"))
    samples, excluded = kept_and_excluded(tmp_path / "first")
    assert len(samples) == 6
    assert excluded == []
    # As datamodules.energon_task names them: the folder of the data set, and Energon's own key.
    log = BadSampleLog(tmp_path / "bad.jsonl", max_in_a_row=9)
    folder = str(tmp_path / "first")
    for key in ("000.json#1", "001.json#2"):
        log.skip(f"{folder}/{samples[key]}", folder, BAD)
    # Other options make other shards, and the record that was mended is another one.
    records[5] = caption("mended", encoded(picture(5)))
    (source / "001.json").write_text(json.dumps(records[3:]))
    options = {"samples_per_shard": 1, "max_tiles": 9, "exclude": (tmp_path / "bad.jsonl",)}
    run(request(source, tmp_path / "second", **options))
    samples, excluded = kept_and_excluded(tmp_path / "second")
    assert excluded == ["000.json#1"]
    assert list(samples) == [f"{file}.json#{n}" for file in ("000", "001") for n in range(3)][
        :1
    ] + ["000.json#2", "001.json#0", "001.json#1", "001.json#2"]


def test_the_list_of_another_data_set_excludes_nothing(tmp_path):
    first = write_source(tmp_path / "first", [[caption("a"), caption("b")]])
    other = write_source(tmp_path / "other", [[caption("c"), caption("d")]])
    run(request(other, tmp_path / "out-other"))
    samples, _ = kept_and_excluded(tmp_path / "out-other")
    log = BadSampleLog(tmp_path / "bad.jsonl", max_in_a_row=9)
    log.skip(f"{tmp_path / 'out-other'}/{samples['000.json#0']}", "other", BAD)
    run(request(first, tmp_path / "out", exclude=(tmp_path / "bad.jsonl",)))
    samples, excluded = kept_and_excluded(tmp_path / "out")
    assert sorted(samples) == ["000.json#0", "000.json#1"]
    assert excluded == []


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_rows_that_training_lists_from_files_are_found(tmp_path, form, monkeypatch):
    from datamodules.dataset import Source
    from datamodules.images import ImageFolder
    from datamodules.record_index import RecordIndex

    source = write_llava_source(tmp_path / "source", files=2, per_file=3)
    if form == "json":
        for path in source.glob("*.jsonl"):
            records = [json.loads(line) for line in path.read_text().splitlines()[1:]]
            path.unlink()
            path.with_suffix(".json").write_text(json.dumps(records))
    path = source / f"1.{form}"
    index = RecordIndex(str(path))
    rows = [
        row
        for row in range(form == "jsonl", len(index))
        if index[row].get("image") in ("1-0.jpg", "1-2.jpg")
    ]
    log = BadSampleLog(tmp_path / "bad.jsonl", max_in_a_row=9)
    monkeypatch.chdir(source)
    # One path as a user may have given it, relative to where training ran, and a whole one.
    for row, name in zip(rows, (f"1.{form}", str(path)), strict=True):
        records = Source(
            name=name, records=index, rows=range(len(index)), images=ImageFolder(source)
        )
        log.skip(records.key(row), name, BAD)
    exclude = (tmp_path / "bad.jsonl",)
    run(request(source, tmp_path / "out", exclude=exclude), FORMATS["llava"])
    samples, excluded = kept_and_excluded(tmp_path / "out")
    assert len(excluded) == 2
    answers = []
    for file in (tmp_path / "out").glob("*.tar"):
        data = file.read_bytes()
        answers += [name for name in (b"1 1-0.jpg", b"1 1-1.jpg", b"1 1-2.jpg") if name in data]
    assert answers == [b"1 1-1.jpg"]


def test_keys_of_the_source_itself_are_understood(tmp_path):
    source = write_source(tmp_path / "source", [[caption("a"), caption("b")]])
    listed = tmp_path / "list.jsonl"
    listed.write_text('{"key": "000.json#0", "reason": "by hand"}\n\n')
    run(request(source, tmp_path / "out", exclude=(listed,)))
    samples, excluded = kept_and_excluded(tmp_path / "out")
    assert list(samples) == ["000.json#1"]
    assert excluded == ["000.json#0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "line 1 of .* is not JSON"),
        ('{"key": "a"}\n{}', 'line 2 of .* has no "key"'),
        ('"a"', 'line 1 of .* has no "key"'),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, message):
    source = write_source(tmp_path / "source", [[caption("a")]])
    (tmp_path / "list").write_text(content)
    with pytest.raises(ValueError, match=f"^exclude: {message}"):
        run(request(source, tmp_path / "out", exclude=(tmp_path / "list",)))
    with pytest.raises(ValueError, match="none cannot be read"):
        run(request(source, tmp_path / "out", exclude=(tmp_path / "none",)))
    assert not (tmp_path / "out").exists()
