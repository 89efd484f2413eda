"""Japanese Visual Genome VQA: eight questions with answers for each image, as one conversation.

By github.com/yahoojapan/ja-vg-vqa the annotations are one JSON file in a subset of Visual Genome's
form 1.2: a list of `{"id": image, "qas": [{"qa_id", "question", "answer"}, ...]}`. Visual Genome's
images are `VG_100K/<id>.jpg` and `VG_100K_2/<id>.jpg`.

What Heron-NVILA trained on is not this but huggingface.co/datasets/llm-jp/ja-vg-vqa-conversation,
in which a language model wrote conversations from it; that is LLaVA JSON.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from preparation.formats.conversations import conversation_about_image
from preparation.formats.fields import as_object, list_field, plain_text, text_field
from preparation.formats.files import find_files, own_folder
from preparation.formats.images import read_loose
from preparation.formats.json_rows import JSON_SUFFIXES
from preparation.formats.loose_rows import LooseImageRows
from preparation.formats.rows import Refusal, Row, RowReader
from preparation.reasons import RejectionReason
from preparation.source import RawSample, Reader, ReaderOptions

_IMAGE_FOLDERS = ("", "VG_100K/", "VG_100K_2/", "images/")


def open_ja_vg_vqa(source: Path, options: ReaderOptions) -> Reader:
    """Opens the JSON file, or a folder that it is in.

    Raises:
        ValueError: The records are no lists of questions.
    """
    files = find_files(source, JSON_SUFFIXES)
    folder = options.image_folder or own_folder(source)
    rows = LooseImageRows(source, files, folder, _image_names)
    first = rows.first_value()
    if isinstance(first, Mapping) and "conversations" in first:
        raise ValueError(f"The records of {source} are LLaVA JSON, which the format llava reads.")
    if not isinstance(first, Mapping) or "qas" not in first:
        raise ValueError(f'The source {source} has no record with "qas", which Visual Genome has.')
    return RowReader(rows, partial(_convert, folder=folder))


def _convert(row: Row, folder: Path) -> Iterator[RawSample]:
    record = as_object(row.value)
    pairs = []
    for entry in list_field(record, "qas"):
        pair = as_object(entry, "An entry of qas")
        pairs.append(
            (plain_text(text_field(pair, "question")), plain_text(text_field(pair, "answer")))
        )
    if not pairs:
        raise Refusal(RejectionReason.EMPTY_TEXT, "The image has no questions.")
    names = _image_names(record)
    if not names:
        raise Refusal(RejectionReason.INVALID_RECORD, "The record does not say which image it has.")
    yield RawSample(
        key=row.key,
        record={"conversations": conversation_about_image(pairs), "id": str(_image_id(record))},
        images=(read_loose(folder, names[0]),),
    )


def _image_names(record: Any) -> list[list[str]]:
    image_id = _image_id(record)
    if image_id is None:
        return []
    return [[f"{folder}{image_id}.jpg" for folder in _IMAGE_FOLDERS]]


def _image_id(record: Any) -> int | None:
    if not isinstance(record, Mapping):
        return None
    given = [record.get("id"), record.get("image_id")]
    entries = record.get("qas")
    if isinstance(entries, list) and entries and isinstance(entries[0], Mapping):
        given.append(entries[0].get("image_id"))
    return next((value for value in given if type(value) is int), None)
