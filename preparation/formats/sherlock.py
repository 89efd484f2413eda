"""Sherlock: boxes in images, what can be seen in them, and what follows from it.

By github.com/allenai/sherlock a file is a JSON list of `{"inputs": {"image": {"url", "width",
"height"}, "bboxes": [{"left", "top", "width", "height"}, ...], "clue"}, "targets": {"inference"},
"instance_id"}`. The images are those of Visual Genome (`VG_100K`, `VG_100K_2`) and VCR
(`vcr1images/<film>`), found by the last parts of the address; the test set has no inferences and is
not published.

Heron-NVILA trained on 317 k of these as conversations on boxes, in a form that is not published.
Here one question names the regions by corners as shares of the image's width and height and is
answered by the clue; a second one asks for the inference.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from preparation.formats.conversations import conversation_about_image
from preparation.formats.fields import (
    as_object,
    identity,
    list_field,
    number_or_none,
    plain_text,
    text_field,
)
from preparation.formats.files import find_files, own_folder
from preparation.formats.images import read_loose
from preparation.formats.json_rows import JSON_SUFFIXES
from preparation.formats.loose_rows import LooseImageRows
from preparation.formats.rows import Refusal, Row, RowReader
from preparation.reasons import RejectionReason
from preparation.source import RawSample, Reader, ReaderOptions

_IMAGE_FOLDERS = ("", "vcr1images/", "images/", "images/vcr1images/")
_ONE_REGION = "What can be seen in the region {regions} of the image?"
_SEVERAL_REGIONS = "What can be seen in the regions {regions} of the image?"
_INFERENCE = "What does this suggest?"


def open_sherlock(source: Path, options: ReaderOptions) -> Reader:
    """Opens the JSON file, or a folder that it is in.

    Raises:
        ValueError: The records are not of Sherlock's form.
    """
    folder = options.image_folder or own_folder(source)
    rows = LooseImageRows(source, find_files(source, JSON_SUFFIXES), folder, _image_names)
    first = rows.first_value()
    if not isinstance(first, Mapping) or "inputs" not in first or "targets" not in first:
        raise ValueError(f'The source {source} has no record with "inputs" and "targets".')
    return RowReader(rows, partial(_convert, folder=folder))


def _convert(row: Row, folder: Path) -> Iterator[RawSample]:
    record = as_object(row.value)
    inputs = as_object(record.get("inputs"), "inputs")
    image = as_object(inputs.get("image"), "image")
    names = _image_names(record)
    if not names:
        raise Refusal(RejectionReason.INVALID_RECORD, "The image has no address.")
    width, height = number_or_none(image.get("width")), number_or_none(image.get("height"))
    if not width or not height or width < 0 or height < 0:
        raise Refusal(RejectionReason.INVALID_RECORD, "The image has no width and height.")
    regions = [
        _region(as_object(box, "A box"), width, height) for box in list_field(inputs, "bboxes")
    ]
    if not regions:
        raise Refusal(RejectionReason.INVALID_RECORD, "The record has no box.")
    question = _ONE_REGION if len(regions) == 1 else _SEVERAL_REGIONS
    clue = plain_text(text_field(inputs, "clue"))
    targets = as_object(record.get("targets"), "targets")
    inference = plain_text(text_field(targets, "inference"))
    pairs = [(question.format(regions=", ".join(regions)), clue), (_INFERENCE, inference)]
    yield RawSample(
        key=row.key,
        record={
            "conversations": conversation_about_image(pairs),
            **identity(record, ("instance_id",)),
        },
        images=(read_loose(folder, names[0]),),
    )


def _region(box: Mapping[str, Any], width: float, height: float) -> str:
    """Returns `[left, top, right, bottom]` as shares of the image, cut off at its borders."""
    sides = [number_or_none(box.get(name)) for name in ("left", "top", "width", "height")]
    if any(side is None for side in sides):
        raise Refusal(RejectionReason.INVALID_RECORD, f"The box {dict(box)} lacks a side.")
    left, top, box_width, box_height = (side or 0.0 for side in sides)
    corners = (
        min(max(left / width, 0.0), 1.0),
        min(max(top / height, 0.0), 1.0),
        min(max((left + box_width) / width, 0.0), 1.0),
        min(max((top + box_height) / height, 0.0), 1.0),
    )
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise Refusal(
            RejectionReason.INVALID_RECORD,
            f"The box {dict(box)} covers nothing of an image of {width:g} x {height:g} pixels.",
        )
    return "[" + ", ".join(f"{corner:.3f}" for corner in corners) + "]"


def _image_names(record: Any) -> list[list[str]]:
    try:
        address = record["inputs"]["image"]["url"]
        path = urlsplit(address).path if isinstance(address, str) else ""
    except (KeyError, TypeError, ValueError):
        return []
    ends = ["/".join(path.strip("/").split("/")[-count:]) for count in (2, 1)]
    if not ends[1]:
        return []
    return [[folder + end for end in ends for folder in _IMAGE_FOLDERS]]
