"""Each filter over a small source: what it leaves out, and under which name."""

import struct
import zlib

import pytest

from preparation.options import FilterOptions
from tests.preparation.toy_source import (
    caption,
    chat,
    encoded,
    picture,
    rejected_of,
    request,
    run,
    samples_of,
    write_source,
)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (caption("a" * 5001), "text_too_long"),
        (caption("  \n", encoded(picture(1))), "empty_text"),
        (caption("side", encoded(picture(1, (9, 40)))), "image_too_small"),
        (caption("side", encoded(picture(1, (40, 16_001)), "PNG")), "image_too_large"),
        (caption("bomb", bomb(30_000, 30_000)), "decompression_bomb"),
        (caption("cut", encoded(picture(1), "PNG")[:-200]), "unreadable_image"),
        (caption("none", b"not an image"), "unreadable_image"),
        (chat("Q", "A", encoded(picture(1)), b"none"), "unreadable_image"),
        (
            caption("moves", encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)])),
            "animated_image",
        ),
        ({"document": "<image> two <image>", "files": caption("", b"x")["files"]}, "invalid"),
        ({"conversations": [{"from": "human", "value": "no answer"}]}, "invalid"),
        (caption("half a pair \ud83d"), "invalid"),
    ],
)
def test_every_filter_gives_its_reason_and_keeps_the_rest(tmp_path, record, reason):
    good = [caption("a" * 5000), caption("small", encoded(picture(1, (10, 10))))]
    source = write_source(tmp_path / "source", [[good[0], record, good[1]]])
    run(request(source, tmp_path / "out"))
    assert [sample[0]["source_key"] for sample in samples_of(tmp_path / "out")] == [
        "000.json#0",
        "000.json#2",
    ]
    ((key, found),) = rejected_of(tmp_path / "out")
    assert key == "000.json#1"
    assert found.startswith(reason)


def test_pixels_are_not_decoded_when_the_header_says_no(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr("preparation.judge.decode", lambda opened: decoded.append(opened))
    source = write_source(
        tmp_path / "source",
        [[chat("Q", "A", encoded(picture(1)), encoded(picture(2, (5, 5)))), caption("text")]],
    )
    run(request(source, tmp_path / "out"))
    assert decoded == []


def test_other_languages_are_left_out(tmp_path):
    source = write_source(
        tmp_path / "source",
        [[caption("これは猫の写真です。"), caption("This is a picture of the cat.")]],
    )
    run(request(source, tmp_path / "out", filters=FilterOptions(language="ja")))
    assert rejected_of(tmp_path / "out") == [("000.json#1", "other_language")]


def test_similarities_are_bounded_and_missing_ones_are_an_error(tmp_path):
    image = encoded(picture(1))
    records = [
        caption("a", image, similarity=[0.3]),
        caption("b", image, similarity=[0.29]),
        caption("c", image, image, similarity=[0.5, float("nan")]),
        caption("d", image),
        caption("e"),
    ]
    source = write_source(tmp_path / "source", [records])
    filters = FilterOptions(min_similarity=0.3)
    run(request(source, tmp_path / "out", filters=filters))
    assert rejected_of(tmp_path / "out") == [
        (f"000.json#{number}", "low_similarity") for number in (1, 2, 3)
    ]
    without = write_source(tmp_path / "without", [[caption("d", image)]])
    with pytest.raises(ValueError, match="^min_similarity: none of the 1 samples"):
        run(request(without, tmp_path / "other", filters=filters))
