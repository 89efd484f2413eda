"""Formats of one annotation file beside a folder of images."""

import json

import pytest

from preparation.formats import FORMATS
from preparation.formats.stair_captions import _PIECE_CAPTIONS
from preparation.reasons import RejectionReason
from preparation.source import ReaderOptions


def asked(*pairs):
    turns = []
    for number, (question, answer) in enumerate(pairs):
        mark = "" if number else "<image>\n"
        turns.append({"from": "human", "value": mark + question})
        turns.append({"from": "gpt", "value": answer})
    return turns


def test_stair_captions(tmp_path, read, red, blue):
    images = tmp_path / "coco"
    for name, data in (
        ("train2014/COCO_train2014_000000000009.jpg", red),
        ("000000000025.jpg", blue),
    ):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(data)
    content = {
        "info": {"year": 2017},
        "images": [
            {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "license": 3},
            {"id": 25, "file_name": "COCO_train2014_000000000025.jpg"},
            {"id": 30, "file_name": "COCO_train2014_000000000030.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "犬がいる", "tokenized_caption": "犬 が いる"},
            {"id": 2, "image_id": 25, "caption": "猫がいる"},
            {"id": 3, "image_id": 9, "caption": "白い犬 "},
            {"id": 4, "image_id": 30, "caption": "鳥"},
            {"id": 5, "image_id": 31, "caption": "鳥"},
            {"id": 6, "image_id": 9, "caption": ""},
            {"id": 7, "image_id": 9},
        ],
    }
    path = tmp_path / "stair_captions_v1.2_train.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    samples, rejected = read("stair_captions", path, image_folder=images)
    assert [sample.record for sample in samples] == [
        {"document": "<image>\n犬がいる", "id": "1"},
        {"document": "<image>\n猫がいる", "id": "2"},
        {"document": "<image>\n白い犬", "id": "3"},
    ]
    assert [sample.images[0].data for sample in samples] == [red, blue, red]
    assert samples[2].key == "stair_captions_v1.2_train.json#2"
    assert [item.reason for item in rejected] == [
        RejectionReason.MISSING_IMAGE,
        RejectionReason.MISSING_IMAGE,
        RejectionReason.EMPTY_TEXT,
        RejectionReason.INVALID_RECORD,
    ]


def test_stair_captions_in_pieces(tmp_path, read, red):
    (tmp_path / "a.jpg").write_bytes(red)
    count = 2 * _PIECE_CAPTIONS + 5
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": n, "image_id": 1, "caption": f"c{n}"} for n in range(count)],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    pieces = FORMATS["stair_captions"].make(tmp_path, ReaderOptions()).pieces()
    assert [piece.stop - piece.first for piece in pieces] == [_PIECE_CAPTIONS] * 2 + [5]
    assert pieces[2].size_bytes == 5 * len(red)
    samples, rejected = read("stair_captions", tmp_path)
    assert [sample.record["id"] for sample in samples] == [str(n) for n in range(count)]
    assert rejected == []


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"images": [], "annotations": [3]}', '"x"'])
def test_stair_captions_of_another_form(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="COCO"):
        FORMATS["stair_captions"].make(tmp_path, ReaderOptions())


def test_ja_vg_vqa(tmp_path, read, red, blue):
    for name, data in (("VG_100K/1.jpg", red), ("VG_100K_2/2.jpg", blue)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    records = [
        {
            "id": 1,
            "qas": [
                {"qa_id": 5, "image_id": 1, "question": "何色ですか?", "answer": "赤"},
                {"qa_id": 6, "image_id": 1, "question": "<image>は?", "answer": "なし"},
            ],
        },
        {"qas": [{"qa_id": 7, "image_id": 2, "question": "何?", "answer": "青"}]},
        {"id": 3, "qas": [{"qa_id": 8, "question": "何?", "answer": "青"}]},
        {"id": 1, "qas": []},
        {"id": 1, "qas": [{"qa_id": 9, "question": "何?", "answer": None}]},
        {"qas": [{"question": "何?", "answer": "青"}]},
    ]
    path = tmp_path / "question_answers.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    samples, rejected = read("ja_vg_vqa", path)
    assert [sample.record for sample in samples] == [
        {"id": "1", "conversations": asked(("何色ですか?", "赤"), ("<IMAGE>は?", "なし"))},
        {"id": "2", "conversations": asked(("何?", "青"))},
    ]
    assert [sample.images[0].data for sample in samples] == [red, blue]
    assert [item.reason for item in rejected] == [
        RejectionReason.MISSING_IMAGE,
        RejectionReason.EMPTY_TEXT,
        RejectionReason.INVALID_RECORD,
        RejectionReason.INVALID_RECORD,
    ]


def test_ja_vg_vqa_of_another_form(tmp_path, write_lines):
    make = FORMATS["ja_vg_vqa"].make
    with pytest.raises(ValueError, match="llava"):
        make(write_lines(tmp_path / "a.jsonl", [{"conversations": []}]), ReaderOptions())
    with pytest.raises(ValueError, match="qas"):
        make(write_lines(tmp_path / "a.jsonl", [{"a": []}]), ReaderOptions())


def observation(url, boxes, **changes):
    return {
        "inputs": {
            "image": {"url": url, "width": 200, "height": 100},
            "bboxes": [
                dict(zip(("left", "top", "width", "height"), box, strict=True)) for box in boxes
            ],
            "clue": "a wet road",
            "confidence": 3.0,
            "obs_idx": 4,
        },
        "targets": {"inference": "it rained"},
        "instance_id": "abc",
        **changes,
    }


def test_sherlock(tmp_path, read, red, blue):
    for name, data in (("VG_100K/7.jpg", red), ("vcr1images/lsmdc_X/a@0.jpg", blue)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    first = "https://cs.stanford.edu/people/rak248/VG_100K/7.jpg"
    second = "http://s3.us/ai2-rowanz/vcr1images/lsmdc_X/a@0.jpg"
    records = [
        observation(first, [(50, 25, 100, 50)]),
        observation(second, [(0, 0, 20, 10), (190, 90, 40, 40)]),
        observation(first, []),
        observation(first, [(10, 10, 0, 5)]),
        observation(first, [(300, 10, 5, 5)]),
        observation("https://x/VG_100K/8.jpg", [(0, 0, 5, 5)]),
        observation("https://x/..", [(0, 0, 5, 5)]),
        observation(first, [(0, 0, 5, 5)], targets={}),
        observation(None, [(0, 0, 5, 5)]),
    ]
    path = tmp_path / "sherlock_train_v1_1.json"
    path.write_text(json.dumps(records))
    samples, rejected = read("sherlock", path)
    one = "What can be seen in the region [0.250, 0.250, 0.750, 0.750] of the image?"
    two = (
        "What can be seen in the regions [0.000, 0.000, 0.100, 0.100], "
        "[0.950, 0.900, 1.000, 1.000] of the image?"
    )
    last = ("What does this suggest?", "it rained")
    assert [sample.record for sample in samples] == [
        {"id": "abc", "conversations": asked((one, "a wet road"), last)},
        {"id": "abc", "conversations": asked((two, "a wet road"), last)},
    ]
    assert [sample.images[0].data for sample in samples] == [red, blue]
    assert [item.reason for item in rejected] == [
        RejectionReason.INVALID_RECORD,
        RejectionReason.INVALID_RECORD,
        RejectionReason.INVALID_RECORD,
        RejectionReason.MISSING_IMAGE,
        RejectionReason.UNSAFE_MEMBER,
        RejectionReason.INVALID_RECORD,
        RejectionReason.INVALID_RECORD,
    ]


def test_sherlock_of_another_form(tmp_path, write_lines):
    with pytest.raises(ValueError, match="inputs"):
        FORMATS["sherlock"].make(write_lines(tmp_path / "a.jsonl", [{"a": 1}]), ReaderOptions())
