"""Japanese Wikipedia: articles as text alone, or images with the text around them.

- Articles are records of `{"id", "url", "title", "text"}`, in Parquet or JSONL, as
  huggingface.co/datasets/wikimedia/wikipedia has them. A document is the title, a blank line and
  the text.
- Heron-NVILA's `wikipedia_ja` is huggingface.co/datasets/turing-motors/Wikipedia-Vision-JA: JSONL
  of `{"key", "caption", "description", "article_url", "image_url", "image_hash"}` without the
  images. Once downloaded, an image is looked for under the name in `image`, else as the key or the
  hash with an ending of image files. A document is the image, the caption and the description; how
  Heron-NVILA joined the two is not published.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from preparation.formats.fields import as_object, identity, plain_text, text_field
from preparation.formats.files import find_files, own_folder
from preparation.formats.images import IMAGE_SUFFIXES, read_loose
from preparation.formats.json_rows import JSON_SUFFIXES
from preparation.formats.loose_rows import LooseImageRows
from preparation.formats.rows import Refusal, Row, RowReader
from preparation.formats.tables import open_table
from preparation.reasons import RejectionReason
from preparation.source import RawSample, Reader, ReaderOptions

_ARTICLE_FIELDS = ("id", "url", "title", "text")


def open_wikipedia_ja(source: Path, options: ReaderOptions) -> Reader:
    """Opens Parquet or JSONL files of articles, or JSONL files of images and captions.

    Raises:
        ValueError: The records are of neither kind.
    """
    folder = options.image_folder or own_folder(source)
    if files := find_files(source, JSON_SUFFIXES):
        rows = LooseImageRows(source, files, folder, _image_names)
        first = rows.first_value()
        if isinstance(first, Mapping) and "caption" in first:
            return RowReader(rows, partial(_convert_image, folder=folder))
    return RowReader(open_table(source, _ARTICLE_FIELDS, ("text",)), _convert_article)


def _convert_article(row: Row) -> Iterator[RawSample]:
    record = as_object(row.value)
    text = plain_text(text_field(record, "text")).strip()
    title = record.get("title")
    if isinstance(title, str) and title.strip():
        text = f"{plain_text(title.strip())}\n\n{text}"
    yield RawSample(key=row.key, record={"document": text, **identity(record)})


def _convert_image(row: Row, folder: Path) -> Iterator[RawSample]:
    record = as_object(row.value)
    texts = [record.get("caption"), record.get("description")]
    given = [plain_text(text.strip()) for text in texts if isinstance(text, str) and text.strip()]
    if not given:
        raise Refusal(RejectionReason.EMPTY_TEXT, "The record has no caption and no description.")
    names = _image_names(record)[0]
    yield RawSample(
        key=row.key,
        record={
            "document": "<image>\n" + "\n".join(given),
            **identity(record, ("key", "article_url")),
        },
        images=(read_loose(folder, names),),
    )


def _image_names(record: Any) -> list[list[str]]:
    if not isinstance(record, Mapping):
        return []
    if isinstance(record.get("image"), str):
        return [[record["image"]]]
    stems = [str(record[name]) for name in ("key", "image_hash") if record.get(name)]
    return [[stem + suffix for stem in stems for suffix in IMAGE_SUFFIXES]]
