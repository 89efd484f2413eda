"""Records by offset against json.load, for content made to mislead a scanner."""

import io
import json
import multiprocessing
import operator
import os
import pickle
import random
from pathlib import Path

import pytest

from datamodules.json_scan import scan_json_array, scan_json_lines
from datamodules.record_index import RecordError, RecordIndex

NASTY = [
    {},
    {"a": 'quote " inside', "b": "comma , bracket ] } [ {"},
    {"backslash": "\\", "two": "\\\\", "quote after": '\\"', "end": '"\\'},
    {"日本語": '改行\n、引用"符"、絵文字😀𠮷', "escaped": "\u2028\u0000\x7f"},
    {"deep": [[[{"x": [1, 2, {"y": ["]", "}"]}]}]]]},
    [],
    [[], [1, [2, "3]"]]],
    "a string, with a comma",
    "",
    -1.5e-3,
    True,
    None,
    {"long": "x" * 1000 + '",' * 50},
]


def random_value(rng: random.Random, depth: int = 0):
    kind = rng.randrange(6 if depth < 4 else 4)
    if kind < 3:
        return "".join(rng.choice('"\\,[]{}:\n\t あ😀x') for _ in range(rng.randrange(12)))
    if kind == 3:
        return rng.choice([None, True, 0, -7, 1.25, 10**20])
    if kind == 4:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {f'k{n}\\"': random_value(rng, depth + 1) for n in range(rng.randrange(5))}


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
def test_array_holds_what_json_load_reads(tmp_path, ascii_only, indent):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(NASTY, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    assert list(RecordIndex(path)) == json.loads(path.read_text(encoding="utf-8")) == NASTY


@pytest.mark.parametrize("ascii_only", [True, False])
def test_lines_hold_what_json_loads_reads(tmp_path, ascii_only):
    path = tmp_path / "records.jsonl"
    lines = [json.dumps(value, ensure_ascii=ascii_only) for value in NASTY]
    path.write_text("\n".join(lines), encoding="utf-8")  # the last line has no newline
    assert list(RecordIndex(path)) == NASTY


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64])
def test_array_scan_is_the_same_for_every_size_of_piece(chunk_bytes):
    rng = random.Random(chunk_bytes)
    for _ in range(30):
        values = [random_value(rng) for _ in range(1 + rng.randrange(6))]
        text = json.dumps(values, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 2]))
        content = (text + " \n").encode()
        offsets = scan_json_array(io.BytesIO(content), "f", chunk_bytes)
        assert [json.loads(content[start:end]) for start, end in offsets] == values


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64])
def test_line_scan_is_the_same_for_every_size_of_piece(chunk_bytes):
    lines = [b'{"a": 1}', b"", b"   ", b"\r", b'"x\\ny"', b"[]\r", b"7", b"", b""]
    content = b"\n".join(lines)
    offsets = scan_json_lines(io.BytesIO(content), chunk_bytes)
    assert [json.loads(content[start:end]) for start, end in offsets] == [{"a": 1}, "x\ny", [], 7]


def test_byte_order_mark_and_leading_whitespace(tmp_path):
    for name, body in (
        ("a.json", b'\xef\xbb\xbf \n [1, {"b": 2}] '),
        ("b.jsonl", b"\xef\xbb\xbf\n1\n2"),
    ):
        (tmp_path / name).write_bytes(body)
    assert list(RecordIndex(tmp_path / "a.json")) == [1, {"b": 2}]
    assert list(RecordIndex(tmp_path / "b.jsonl")) == [1, 2]


def test_index_holds_offsets_only(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 500}) + "\n" for _ in range(1000)))
    index = RecordIndex(path)
    assert index.offsets.dtype == "int64"
    assert index.offsets.shape == (1000, 2)
    assert len(pickle.dumps(index)) < 20_000 < os.path.getsize(path)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_from_other_processes(tmp_path, method):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f'{{"n": {number}}}\n' for number in range(50)))
    index = RecordIndex(path)
    assert index[49] == {"n": 49}  # open before the processes start
    numbers = [random.Random(0).randrange(50) for _ in range(40)]
    with multiprocessing.get_context(method).Pool(3) as pool:
        read = pool.starmap(operator.getitem, [(index, number) for number in numbers])
    assert read == [{"n": number} for number in numbers]


def test_one_broken_record_is_an_error_of_its_own(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"broken": \n{"n": 1}\n{"bytes": "\xff"}\n{"n": 3}\n')
    index = RecordIndex(path)
    assert len(index) == 4
    assert (index[1], index[3]) == ({"n": 1}, {"n": 3})
    with pytest.raises(RecordError, match=r"Record 0 of .*records.jsonl, at byte 0, is not JSON"):
        index[0]
    with pytest.raises(RecordError, match=r"Record 2 of .*, at byte 21,"):
        index[2]
    with pytest.raises(IndexError):
        index[4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no record"),
        (b" \n\n ", "holds no record"),
        (b"[ ]", "holds no record"),
        (b"this is text\nmore text", "Record 0 of .* at byte 0, is not JSON"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "Record 0 of .* is not JSON"),
        (b'{\n  "pretty": 1\n}\n', "Record 0 of .* is not JSON"),
        (b"[1, 2", "not closed: the file ends at byte 5, inside element 1"),
        (b'[{"a": "]', "not closed"),
        (b'[{"a": 1}] [2]', "ends at byte 10, but more follows at byte 11"),
        (b"[1]\n[2]\n", "more follows at byte 4"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    path = tmp_path / "records.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        RecordIndex(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ValueError, match=f"There is no file {path}"):
            RecordIndex(Path(path))
