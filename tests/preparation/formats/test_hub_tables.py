"""Formats that the Hugging Face hub has as tables with images in them."""

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from preparation.formats import FORMATS
from preparation.reasons import RejectionReason
from preparation.source import ReaderOptions


def struct(data):
    return {"bytes": data, "path": None}


def test_synthdog(tmp_path, read, red, blue):
    truths = [
        {"gt_parse": {"text_sequence": "東京 <image> 駅"}},
        {"gt_parse": {"text_sequence": "Old town"}},
        {"gt_parse": {"text_sequence": "カタカナ"}},
        {"gt_parse": {}},
        {},
    ]
    table = {
        "image": [struct(red), struct(blue), struct(red), struct(red), struct(red), struct(red)],
        "ground_truth": [*(json.dumps(truth) for truth in truths), "{"],
    }
    pq.write_table(pa.table(table), tmp_path / "train-00000-of-00001.parquet")
    samples, rejected = read("synthdog", tmp_path)
    turns = [sample.record["conversations"] for sample in samples]
    assert [turn[1] for turn in turns] == [
        {"from": "gpt", "value": answer} for answer in ("東京 <IMAGE> 駅", "Old town", "カタカナ")
    ]
    questions = [turn[0]["value"] for turn in turns]
    assert all(question.startswith("<image>\n") for question in questions)
    assert [question.isascii() for question in questions] == [False, True, False]
    assert questions[0] != questions[2]
    assert [sample.images[0].data for sample in samples] == [red, blue, red]
    assert [item.reason for item in rejected] == [RejectionReason.INVALID_RECORD] * 3


def ai2d_table(red):
    return {
        "question": ["Which is a larva?", "Q <image>", "Q", "Q", "Q"],
        "options": [["A", "B", "egg", "none"], ["x", "y"], ["x", "y"], ["x"], ["x", "y"]],
        "answer": ["2", "0", "2", "0", "-1"],
        "image": [struct(red)] * 5,
    }


def check_ai2d(samples, rejected, red):
    assert [sample.record["conversations"] for sample in samples] == [
        [
            {
                "from": "human",
                "value": "<image>\nWhich is a larva?\nA. A\nB. B\nC. egg\nD. none\n"
                "Answer with the letter of the right option.",
            },
            {"from": "gpt", "value": "C"},
        ],
        [
            {
                "from": "human",
                "value": "<image>\nQ <IMAGE>\nA. x\nB. y\n"
                "Answer with the letter of the right option.",
            },
            {"from": "gpt", "value": "A"},
        ],
    ]
    assert samples[0].images[0].data == red
    assert [item.reason for item in rejected] == [RejectionReason.INVALID_RECORD] * 3


def test_ai2d(tmp_path, read, red):
    pq.write_table(pa.table(ai2d_table(red)), tmp_path / "test-0.parquet")
    check_ai2d(*read("ai2d", tmp_path), red)


def test_ai2d_as_a_saved_data_set(tmp_path, read, red):
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "options": datasets.List(datasets.Value("string")),
            "answer": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )
    datasets.Dataset.from_dict(ai2d_table(red), features).save_to_disk(tmp_path / "d")
    check_ai2d(*read("ai2d", tmp_path / "d"), red)


def conversation(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def saved(red, blue):
    columns = {
        "id": [1, 2, 3],
        "images": [[struct(red), struct(blue)], [], [struct(red)]],
        "conversations": [
            conversation("<image>と<image>", "A"),
            conversation("Q", "B"),
            conversation("<image><image>", "C"),
        ],
    }
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "images": datasets.List(datasets.Image()),
            "conversations": datasets.List(
                {"from": datasets.Value("string"), "value": datasets.Value("string")}
            ),
        }
    )
    return datasets.Dataset.from_dict(columns, features)


def check_saved(samples, rejected, red, blue):
    assert [sample.record for sample in samples] == [
        {"id": "1", "conversations": conversation("<image>と<image>", "A")},
        {"id": "2", "conversations": conversation("Q", "B")},
    ]
    assert [[image.data for image in sample.images] for sample in samples] == [[red, blue], []]
    assert [item.reason for item in rejected] == [RejectionReason.INVALID_RECORD]


def test_hf_saved_to_disk(tmp_path, read, saved, red, blue):
    saved.save_to_disk(tmp_path / "d", num_shards=2)
    samples, rejected = read("hf", tmp_path / "d")
    check_saved(samples, rejected, red, blue)
    assert samples[0].key == "data-00000-of-00002.arrow#0"
    assert rejected[0].key == "data-00001-of-00002.arrow#0"


def test_hf_with_splits(tmp_path, read, saved, red, blue):
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "d")
    samples, rejected = read("hf", tmp_path / "d")
    check_saved(samples, rejected, red, blue)
    assert samples[0].key == "train/data-00000-of-00001.arrow#0"


def test_hf_parquet(tmp_path, read, saved, red, blue):
    saved.to_parquet(tmp_path / "a.parquet", batch_size=2)
    samples, rejected = read("hf", tmp_path / "a.parquet")
    check_saved(samples, rejected, red, blue)


def test_hf_rows_in_another_order(tmp_path, read, saved, red, blue):
    saved.select([1, 0, 2]).save_to_disk(tmp_path / "d")
    samples, _ = read("hf", tmp_path / "d")
    assert [sample.record["id"] for sample in samples] == ["2", "1"]
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="flatten_indices"):
        FORMATS["hf"].make(tmp_path / "d", ReaderOptions())


def test_hf_single_images_and_paths(tmp_path, read, red, blue):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").write_bytes(blue)
    one = conversation("<image>\nQ", "A")
    for name, column in (
        ("bytes", [red, None]),
        ("struct", [struct(red), {"bytes": None, "path": "b.png"}]),
        ("name", ["b.png", "none.png"]),
    ):
        table = pa.table({"image": column, "conversations": [one, one]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    options = {"image_folder": tmp_path / "images"}
    samples, rejected = read("hf", tmp_path / "bytes.parquet", **options)
    assert [sample.images[0].data for sample in samples] == [red]
    assert [item.reason for item in rejected] == [RejectionReason.INVALID_RECORD]
    samples, rejected = read("hf", tmp_path / "struct.parquet", **options)
    assert [sample.images[0].data for sample in samples] == [red, blue]
    samples, rejected = read("hf", tmp_path / "name.parquet", **options)
    assert [sample.images[0].data for sample in samples] == [blue]
    assert [item.reason for item in rejected] == [RejectionReason.MISSING_IMAGE]


def test_images_of_datasets_are_files(tmp_path, read):
    """An image that was given as pixels is stored by `datasets` as the bytes of a file."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "conversations": datasets.List(
                {"from": datasets.Value("string"), "value": datasets.Value("string")}
            ),
        }
    )
    columns = {
        "image": [Image.new("RGB", (5, 4), "red")],
        "conversations": [conversation("Q", "A")],
    }
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "d")
    [sample], _ = read("hf", tmp_path / "d")
    assert Image.open(io.BytesIO(sample.images[0].data)).size == (5, 4)
    assert sample.record["conversations"][0]["value"] == "<image>\nQ"


def test_damaged_tables(tmp_path, read, saved):
    saved.save_to_disk(tmp_path / "d")
    path = tmp_path / "d" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-400])
    samples, rejected = read("hf", tmp_path / "d")
    assert RejectionReason.DAMAGED_FILE in [item.reason for item in rejected]


def test_other_sources_are_refused(tmp_path, red):
    with pytest.raises(ValueError, match="neither"):
        FORMATS["hf"].make(tmp_path, ReaderOptions())
    pq.write_table(pa.table({"image": [red]}), tmp_path / "a.parquet")
    for name, missing in (("hf", "conversations"), ("ai2d", "question"), ("synthdog", "ground")):
        with pytest.raises(ValueError, match=missing):
            FORMATS[name].make(tmp_path, ReaderOptions())
