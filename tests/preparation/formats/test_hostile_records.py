"""Whatever a record holds, a reader goes on to the next one."""

import base64
import json
import pickle
import random

import pytest

ODD = [
    None, True, 0, -1, 2**70, 10**400, 1.5, float("nan"), float("inf"), "", " ", "x", "\x00", "..",
    "/", {"bytes": 2**40}, {"bytes": [1]}, {"bytes": {"bytes": "x"}},
    "\ud800", "a" * 5000, "http://[", [], [[]], [None], [1, "a"], {}, {"a": 1}, {"bytes": 3},
    {"bytes": None, "path": 3}, {"bytes": None, "path": "\x00"}, [{}], [["a", "b"]],
]  # fmt: skip


def good_records(image):
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    url = "https://a/VG_100K/7.jpg"
    box = {"left": 1, "top": 1, "width": 5, "height": 5}
    info = {
        "image_base64": image, "image_name": "n.jpg", "url": "u", "placeholder": "[p]",
        "matched_text_index": 0, "matched_sim": 0.5,
    }  # fmt: skip
    return {
        "llava": {"id": 1, "image": "a.jpg", "conversations": turns},
        "captions": {
            "id": 1, "image": "a.jpg", "caption": "c", "clip_sim": 0.5, "status": "success",
        },
        "interleaved": {
            "docId": "d", "url": "u", "text_list": ["A [p]", "B"], "image_info": [info, info],
            "similarity_matrix": [[0.1, 0.2], [0.3, 0.4]],
        },
        "wikipedia_ja": {"id": "1", "url": "u", "title": "t", "text": "x"},
        "ja_vg_vqa": {"id": 7, "qas": [{"question": "q", "answer": "a", "image_id": 7}]},
        "sherlock": {
            "inputs": {
                "image": {"url": url, "width": 9, "height": 9}, "bboxes": [box], "clue": "c",
            },
            "targets": {"inference": "i"},
            "instance_id": "x",
        },
        "ai2d": {"question": "q", "options": ["a", "b"], "answer": "1", "image": image},
        "synthdog": {
            "image": image, "ground_truth": json.dumps({"gt_parse": {"text_sequence": "t"}})
        },
        "hf": {"id": 1, "image": {"bytes": None, "path": "a.jpg"}, "conversations": turns},
    }  # fmt: skip


def changed(record, chance):
    """The record with one value, at any depth, replaced or removed."""
    copy = pickle.loads(pickle.dumps(record))
    holder, places = copy, []

    def walk(value):
        if isinstance(value, dict | list):
            keys = list(value) if isinstance(value, dict) else range(len(value))
            for key in keys:
                places.append((value, key))
                walk(value[key])

    walk(copy)
    holder, key = chance.choice(places)
    if chance.random() < 0.2:
        del holder[key]
    else:
        holder[key] = chance.choice(ODD)
    return copy


@pytest.mark.parametrize("name", good_records(""))
def test_changed_records_are_read_or_rejected(name, tmp_path, read, write_lines, red):
    (tmp_path / "VG_100K").mkdir()
    for path in ("a.jpg", "n.jpg", "VG_100K/7.jpg"):
        (tmp_path / path).write_bytes(red)
    good = good_records(base64.b64encode(red).decode())[name]
    chance = random.Random(0)
    records = [good, *(changed(good, chance) for _ in range(400)), good]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    samples, rejected = read(name, path)
    assert len(samples) + len({item.key.partition("/")[0] for item in rejected}) >= len(records)
    assert [image.data for image in samples[0].images] == [
        image.data for image in samples[-1].images
    ]
    assert samples[0].record.keys() == samples[-1].record.keys()
    assert rejected


@pytest.mark.parametrize("name", ["captions", "interleaved"])
def test_changed_pickles_are_read_or_rejected(name, tmp_path, read, red):
    image = base64.b64encode(red).decode()
    good = good_records(image)[name]
    if name == "captions":
        good = {**good, "image": image}
    chance = random.Random(1)
    records = [good, *(changed(good, chance) for _ in range(400)), good]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(records))
    samples, rejected = read(name, tmp_path)
    assert len(samples) > 50
    assert len(rejected) > 50
    data = bytearray((tmp_path / "a.pkl").read_bytes())
    for _ in range(30):
        broken = bytearray(data)
        broken[chance.randrange(min(3000, len(data)))] = chance.randrange(256)
        (tmp_path / "a.pkl").write_bytes(broken)
        read(name, tmp_path)
