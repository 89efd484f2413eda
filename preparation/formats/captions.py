"""Pairs of an image and a caption, in the four kinds of file that they are published in.

- `pkl`: lists of `{"id", "url", "text", "clip_sim", "image"}` with the JPEG file as base64 text, in
  parts of 12,440 beside a `.count`, as `data_prepare/coyo` of github.com/NVlabs/VILA writes COYO
  and as github.com/u8-zawa/llm-jp-VILA asks for llm-jp's Japanese image-text pairs. `clip_sim`
  there is the sum of two models' similarities.
- `tar`: WebDataset samples of an image, `txt` or `caption`, and `json` with the address, as
  github.com/rom1504/img2dataset writes them and VILA's COYO and CCS data sets read them. The
  Parquet files of img2dataset beside its tars repeat the JSON parts and are passed over.
- `parquet`: img2dataset's own (`jpg`, `caption`, `status`) and those of the Hugging Face hub, whose
  images are `{"bytes", "path"}`.
- `jsonl`: `{"image", "caption"}` beside a folder of images.

Which kind it is shows in the names of the files.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from preparation.formats.fields import (
    as_object,
    identity,
    number_or_none,
    plain_text,
    text_field,
)
from preparation.formats.files import find_files, own_folder
from preparation.formats.images import embedded, read_loose
from preparation.formats.json_rows import JSON_SUFFIXES
from preparation.formats.loose_rows import LooseImageRows
from preparation.formats.pickle_rows import PickleRows
from preparation.formats.rows import Refusal, Row, RowReader
from preparation.formats.table_rows import ParquetRows
from preparation.formats.tar_rows import TarRows
from preparation.reasons import RejectionReason
from preparation.source import RawImage, RawSample, Reader, ReaderOptions

CAPTION_FIELDS = ("caption", "text", "txt", "TEXT")
IMAGE_FIELDS = ("image", "jpg", "jpeg", "png", "webp", "img")
SIMILARITY_FIELDS = (
    "clip_sim",
    "similarity",
    "SIMILARITY",
    "clip_similarity_vitl14",
    "clip_similarity_vitb32",
)
_NAME_FIELDS = ("id", "key", "__key__", "url", "URL")
_STATUS_FIELDS = ("status", "error_message")
_TAR_CAPTIONS = ("txt", "caption")
_TAR_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tiff", "tif", "gif")


def open_captions(source: Path, options: ReaderOptions) -> Reader:
    """Opens a source of captions of whichever kind it is.

    Raises:
        ValueError: The source holds files of no kind, or of several.
    """
    kind, files = _find_kind(source)
    if kind == ".pkl":
        return RowReader(PickleRows(source, files), _convert_embedded)
    if kind == ".tar":
        return RowReader(TarRows(source, files), _convert_tar)
    folder = options.image_folder or own_folder(source)
    if kind == ".parquet":
        columns = (*CAPTION_FIELDS, *IMAGE_FIELDS, *SIMILARITY_FIELDS, *_NAME_FIELDS)
        table = ParquetRows(source, files, (*columns, *_STATUS_FIELDS))
        if not table.column_names() & set(CAPTION_FIELDS):
            raise ValueError(
                f"The Parquet files of {source} have none of the columns "
                f"{', '.join(CAPTION_FIELDS)}, but captions need one."
            )
        return RowReader(table, partial(_convert_embedded, folder=folder))
    rows = LooseImageRows(source, files, folder)
    first = rows.first_value()
    if not isinstance(first, Mapping) or not any(name in first for name in CAPTION_FIELDS):
        raise ValueError(
            f"The source {source} has no record with one of {', '.join(CAPTION_FIELDS)}, which "
            f"captions have."
        )
    return RowReader(rows, partial(_convert_loose, folder=folder))


def _find_kind(source: Path) -> tuple[str, list[Path]]:
    found = {suffix: find_files(source, (suffix,)) for suffix in (".pkl", ".tar", ".parquet")}
    if found[".tar"]:
        stems = {path.with_suffix("") for path in found[".tar"]}
        found[".parquet"] = [
            path for path in found[".parquet"] if path.with_suffix("") not in stems
        ]
    kinds = [suffix for suffix, files in found.items() if files]
    if not kinds:
        found[".jsonl"] = find_files(source, JSON_SUFFIXES)
        kinds = [".jsonl"] if found[".jsonl"] else []
    if len(kinds) != 1:
        raise ValueError(
            f"The source {source} holds {' and '.join(kinds) or 'no'} files; captions are files of "
            f"one of the kinds .pkl, .tar, .parquet and .jsonl."
        )
    return kinds[0], found[kinds[0]]


def caption_sample(
    key: str, caption: str, image: RawImage, record: Mapping[str, Any], similarity: Any = None
) -> RawSample:
    """Returns a caption as a document: the image, then the text.

    Args:
        key: The sample's key.
        caption: The text.
        image: The image.
        record: What the sample's `id` is in.
        similarity: How well they fit, where that is a number.
    """
    measured = number_or_none(similarity)
    return RawSample(
        key=key,
        record={
            "document": f"<image>\n{plain_text(caption.strip())}",
            **identity(record, _NAME_FIELDS),
        },
        images=(image,),
        similarity=None if measured is None else (measured,),
    )


def _convert_embedded(row: Row, folder: Path | None = None) -> Iterator[RawSample]:
    record = as_object(row.value)
    if record.get("status") not in (None, "success"):
        raise Refusal(
            RejectionReason.MISSING_IMAGE,
            f"The image was not downloaded: {record.get('error_message') or record['status']}.",
        )
    caption = text_field(record, _first_given(record, CAPTION_FIELDS))
    value = record.get(_first_given(record, IMAGE_FIELDS))
    image = embedded(value, str(record.get("url") or row.key), folder)
    similarity = record.get(_first_given(record, SIMILARITY_FIELDS))
    yield caption_sample(row.key, caption, image, record, similarity)


def _convert_loose(row: Row, folder: Path) -> Iterator[RawSample]:
    record = as_object(row.value)
    caption = text_field(record, _first_given(record, CAPTION_FIELDS))
    name = text_field(record, _first_given(record, IMAGE_FIELDS))
    similarity = record.get(_first_given(record, SIMILARITY_FIELDS))
    yield caption_sample(row.key, caption, read_loose(folder, [name]), record, similarity)


def _convert_tar(row: Row) -> Iterator[RawSample]:
    parts = row.value
    extension = next((name for name in _TAR_IMAGES if name in parts), None)
    if extension is None:
        raise Refusal(RejectionReason.MISSING_IMAGE, "The sample has no image.")
    record: Mapping[str, Any] = {}
    if "json" in parts:
        record = as_object(_decoded_json(parts["json"]), "The part json")
    texts = [parts[name] for name in _TAR_CAPTIONS if name in parts]
    if texts:
        record = {**record, "caption": _decoded_text(texts[0])}
    caption = text_field(record, _first_given(record, CAPTION_FIELDS))
    stem = row.key.partition("#")[2]
    image = RawImage(name=f"{PurePosixPath(stem).name}.{extension}", data=parts[extension])
    if not image.data:
        raise Refusal(RejectionReason.MISSING_IMAGE, "The image has no bytes.")
    similarity = record.get(_first_given(record, SIMILARITY_FIELDS))
    yield caption_sample(row.key, caption, image, record, similarity)


def _first_given(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Returns the first name that a record has a value for, or the first of all."""
    return next((name for name in names if record.get(name) is not None), names[0])


def _decoded_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(
            RejectionReason.INVALID_RECORD, f"The part json is not JSON: {error}."
        ) from error


def _decoded_text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            RejectionReason.INVALID_RECORD, f"The caption is not UTF-8: {error}."
        ) from error
