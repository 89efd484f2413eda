import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preparation.formats import FORMATS
from preparation.reasons import RejectionReason
from preparation.source import ReaderOptions

ARTICLES = [
    {"id": "5", "url": "https://ja/5", "title": "アンパサンド", "text": " 記号 <image> です。\n"},
    {"id": "10", "url": "https://ja/10", "title": "言語", "text": ""},
    {"id": "11", "url": "https://ja/11", "title": None, "text": "本文"},
]
DOCUMENTS = [
    {"document": "アンパサンド\n\n記号 <IMAGE> です。", "id": "5"},
    {"document": "本文", "id": "11"},
]


def test_articles_of_tables(tmp_path, read):
    pq.write_table(pa.Table.from_pylist(ARTICLES), tmp_path / "train-0.parquet", row_group_size=2)
    samples, rejected = read("wikipedia_ja", tmp_path)
    assert [sample.record for sample in samples] == DOCUMENTS
    assert [sample.images for sample in samples] == [(), ()]
    assert [sample.key for sample in samples] == ["train-0.parquet#0", "train-0.parquet#2"]
    assert [(item.key, item.reason) for item in rejected] == [
        ("train-0.parquet#1", RejectionReason.EMPTY_TEXT)
    ]


def test_articles_of_lines(tmp_path, read, write_lines):
    samples, rejected = read("wikipedia_ja", write_lines(tmp_path / "a.jsonl", ARTICLES))
    assert [sample.record for sample in samples] == DOCUMENTS
    assert len(rejected) == 1


def test_images_with_the_text_around_them(tmp_path, read, write_lines, red, blue):
    images = tmp_path / "images"
    images.mkdir()
    (images / "000057870.png").write_bytes(blue)
    (images / "f00d.jpg").write_bytes(red)
    record = {"caption": "チューリング", "description": "数学者。", "article_url": "https://ja/t"}
    path = write_lines(
        tmp_path / "Wikipedia_Vision_JA.jsonl",
        [
            {"key": "000057870", "image_hash": "aaaa", **record},
            {"key": "1", "image_hash": "f00d", **record, "caption": None},
            {"key": "2", "image_hash": "f11d", **record},
            {"key": "3", "image": "f00d.jpg", **record, "caption": "", "description": None},
        ],
    )
    samples, rejected = read("wikipedia_ja", path, image_folder=images)
    assert [sample.record for sample in samples] == [
        {"document": "<image>\nチューリング\n数学者。", "id": "000057870"},
        {"document": "<image>\n数学者。", "id": "1"},
    ]
    assert [sample.images[0].data for sample in samples] == [blue, red]
    assert [item.reason for item in rejected] == [
        RejectionReason.MISSING_IMAGE,
        RejectionReason.EMPTY_TEXT,
    ]


def test_other_sources_are_refused(tmp_path, write_lines):
    with pytest.raises(ValueError, match="text"):
        FORMATS["wikipedia_ja"].make(write_lines(tmp_path / "a.jsonl", [{"a": 1}]), ReaderOptions())
