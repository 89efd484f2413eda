import json
import subprocess
import sys

import pytest

from preparation.formats import FORMATS
from preparation.formats.json_rows import JsonRows
from preparation.formats.rows import Row
from preparation.reasons import RejectionReason
from preparation.source import Piece, ReaderOptions


def turns(*pairs):
    return [{"from": role, "value": value} for role, value in pairs]


@pytest.fixture
def folder(tmp_path, red, blue):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "a.jpg").write_bytes(red)
    (tmp_path / "images" / "deep" / "b.png").write_bytes(blue)
    return tmp_path


def records():
    return [
        {
            "id": 7,
            "image": "a.jpg",
            "conversations": turns(("human", "<image>\nQ"), ("gpt", "A")),
        },
        {
            "id": "two",
            "images": ["a.jpg", "deep/b.png"],
            "conversations": turns(
                ("システム", "S"), ("ユーザー", "<image>と<image>"), ("アシスタント", "答え")
            ),
        },
        {"conversations": turns(("user", "Q"), ("assistant", "A"))},
        {"image": "a.jpg", "conversations": turns(("human", "Q"), ("gpt", "A"))},
    ]


def check(samples, red, blue):
    assert [sample.record for sample in samples] == [
        {"id": "7", "conversations": turns(("human", "<image>\nQ"), ("gpt", "A"))},
        {
            "id": "two",
            "conversations": turns(("system", "S"), ("human", "<image>と<image>"), ("gpt", "答え")),
        },
        {"conversations": turns(("human", "Q"), ("gpt", "A"))},
        {"conversations": turns(("human", "<image>\nQ"), ("gpt", "A"))},
    ]
    assert [[image.data for image in sample.images] for sample in samples] == [
        [red], [red, blue], [], [red],
    ]  # fmt: skip
    assert [image.name for image in samples[1].images] == ["a.jpg", "deep/b.png"]


def test_lines(folder, read, write_lines, red, blue):
    path = write_lines(folder / "train.jsonl", records())
    samples, rejected = read("llava", path, image_folder=folder / "images")
    assert rejected == []
    check(samples, red, blue)
    offsets = [0]
    for line in path.read_bytes().splitlines(keepends=True)[:-1]:
        offsets.append(offsets[-1] + len(line))
    assert [sample.key for sample in samples] == [f"train.jsonl@{offset}" for offset in offsets]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_one_array_beside_its_images(folder, read, red, blue, indent, ascii_only):
    text = json.dumps(records(), indent=indent, ensure_ascii=ascii_only)
    (folder / "images" / "train.json").write_text("\ufeff " + text, encoding="utf-8")
    samples, rejected = read("llava", folder / "images")
    assert rejected == []
    check(samples, red, blue)
    content = (folder / "images" / "train.json").read_bytes()
    decoder = json.JSONDecoder()
    for sample, record in zip(samples, records(), strict=True):
        start = int(sample.key.rpartition("@")[2])
        assert decoder.raw_decode(content[start:].decode())[0] == record


def test_bad_records_are_rejected_one_by_one(folder, read, write_lines):
    good = turns(("human", "Q"), ("gpt", "A"))
    path = write_lines(
        folder / "train.jsonl",
        [
            {"conversations": good},
            {"image": "no.jpg", "conversations": good},
            {"image": "../secret.jpg", "conversations": good},
            {"image": "/etc/hostname", "conversations": good},
            {"image": "x" * 5000, "conversations": good},
            {"image": "a.jpg", "conversations": turns(("human", "Q"), ("gpt", ""))},
            [1],
        ],
    )
    (folder / "secret.jpg").write_bytes(b"secret")
    with open(path, "ab") as stream:
        stream.write(b'{"conversations": \n\n\xff\n' + b"[" * 100_000 + b"\n")
    samples, rejected = read("llava", path, image_folder=folder / "images")
    assert len(samples) == 1
    assert [item.reason for item in rejected] == [
        RejectionReason.MISSING_IMAGE,
        RejectionReason.UNSAFE_MEMBER,
        RejectionReason.UNSAFE_MEMBER,
        RejectionReason.MISSING_IMAGE,
        *[RejectionReason.INVALID_RECORD] * 5,
    ]
    assert "no.jpg" in rejected[0].message


def test_pieces_cut_lines_and_arrays_between_records(tmp_path, write_lines):
    values = [{"text": "日" * (number % 50), "n": [number, {"x": "],"}]} for number in range(500)]
    lines = write_lines(tmp_path / "a.jsonl", values)
    array = tmp_path / "b.json"
    array.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")
    for path in (lines, array):
        rows = JsonRows(tmp_path, [path], piece_bytes=1000)
        pieces = rows.pieces()
        assert len(pieces) > 10
        found = [row for piece in pieces for row in rows.read(piece)]
        assert [row.value for row in found] == values
        assert len({row.key for row in found}) == len(values)
        assert [row.key for row in rows.read(Piece(path=path))] == [row.key for row in found]
        assert abs(sum(piece.size_bytes for piece in pieces) - path.stat().st_size) < 100


def test_arrays_longer_than_what_is_read_at_once(tmp_path):
    values = [{"n": number, "text": "あ" * 100_000} for number in range(30)]
    path = tmp_path / "big.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    rows = JsonRows(tmp_path, [path])
    assert [row.value["n"] for row in rows.read(Piece(path=path))] == list(range(30))
    path.write_text(json.dumps(list(range(400_000)), separators=(",", ":")))
    assert [row.value for row in rows.read(Piece(path=path))] == list(range(400_000))
    bounded = JsonRows(tmp_path, [path], max_record_bytes=50_000)
    path.write_text(json.dumps([{"text": "x" * 5_000_000}]))
    with pytest.raises(ValueError, match="element at byte 1 .* longer than 50000"):
        list(bounded.read(Piece(path=path)))


@pytest.mark.parametrize("content", [b'[{"a": 1} {"b"', b'[{"a": 1},', b"[1, ]", b"[1", b"[\xff]"])
def test_an_array_that_is_none_is_an_error(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json|UTF-8"):
        list(JsonRows(tmp_path, [path]).read(Piece(path=path)))


def test_sizes_of_pieces_count_the_images(folder, write_lines, red):
    conversations = turns(("human", "Q"), ("gpt", "A" * 1000))
    path = write_lines(
        folder / "train.jsonl", [{"image": "a.jpg", "conversations": conversations}] * 10
    )
    options = ReaderOptions(image_folder=folder / "images")
    size_bytes = sum(p.size_bytes for p in FORMATS["llava"].make(path, options).pieces())
    assert size_bytes == pytest.approx(path.stat().st_size + 10 * len(red), rel=0.1)


def test_other_sources_are_refused(tmp_path, write_lines):
    make = FORMATS["llava"].make
    with pytest.raises(ValueError, match="does not exist"):
        make(tmp_path / "nowhere", ReaderOptions())
    with pytest.raises(ValueError, match="conversations"):
        make(tmp_path, ReaderOptions())
    with pytest.raises(ValueError, match="conversations"):
        make(write_lines(tmp_path / "a.jsonl", [{"text": "a"}]), ReaderOptions())


def test_long_lines_are_rejected_without_being_held(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n' + b"x" * 10_000 + b'\n{"n": 2}\n' + b"y" * 5_000)
    rows = JsonRows(tmp_path, [path], max_record_bytes=100)
    found = list(rows.read(Piece(path=path)))
    assert [row.value["n"] for row in found if isinstance(row, Row)] == [1, 2]
    assert [item.key for item in found if not isinstance(item, Row)] == [
        "a.jsonl@9",
        "a.jsonl@10019",
    ]


def test_the_table_of_formats_is_light():
    code = (
        "import sys, preparation.formats\n"
        "print(sorted({'pyarrow', 'torch', 'datasets', 'transformers', 'numpy', 'nemo'}"
        " & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_format_says_what_it_is():
    assert set(FORMATS) == {
        "llava", "captions", "interleaved", "wikipedia_ja", "stair_captions", "ja_vg_vqa",
        "synthdog", "ai2d", "sherlock", "hf",
    }  # fmt: skip
    assert FORMATS["captions"].max_tiles == 1
    assert FORMATS["interleaved"].max_tiles == 6
    for row in FORMATS.values():
        assert row.description
        with pytest.raises(ValueError, match="nowhere"):
            row.make(__import__("pathlib").Path("nowhere"), ReaderOptions())
