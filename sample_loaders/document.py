"""Documents: text with images in it, all of which is learnt, captions included."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sample_loaders.conversation import (
    IMAGE_PLACEHOLDER,
    ConversationSample,
    parse_llava,
    read_images,
    read_max_tiles,
)
from sample_loaders.errors import BadSample, Reason
from sample_loaders.preference import PreferenceSample, is_preference, parse_preference


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSample:
    """A text whose every token is learnt; a caption is one image and its text.

    Attributes:
        key: Names the record for people and for the list of bad samples.
        source: Names the file or data set that the record came from.
        text: The text; every `<image>` stands for the next image.
        images: Image names in the order of their placeholders.
        max_tiles: No image takes more tiles than this; None leaves it to the model.
    """

    key: str
    source: str
    text: str
    images: tuple[str, ...]
    max_tiles: int | None = None


Sample = ConversationSample | DocumentSample | PreferenceSample


def parse_record(record: object, key: str, source: str) -> Sample:
    r"""Reads a record that is a conversation, a document or a preference.

    A document has the form `{"document": "<image>\nA text.", "images": ["0.jpg"]}`; for the form
    of conversations see `parse_llava`, for that of preferences `parse_preference`.

    Raises:
        BadSample: The record cannot be used; the reason is one of `Reason`.
    """
    if isinstance(record, Mapping) and "document" in record:
        return parse_document(record, key, source)
    if isinstance(record, Mapping) and is_preference(record):
        return parse_preference(record, key, source)
    return parse_llava(record, key, source)


def parse_document(record: Mapping[str, Any], key: str, source: str) -> DocumentSample:
    """Reads a document.

    Raises:
        BadSample: The record cannot be used.
    """
    text = record["document"]
    if not isinstance(text, str):
        raise BadSample(Reason.WRONG_TYPE, f'"document" is a {type(text).__name__}, not a string.')
    if "conversations" in record:
        raise BadSample(Reason.WRONG_TYPE, 'The record has both "document" and "conversations".')
    if not text.replace(IMAGE_PLACEHOLDER, "").strip():
        raise BadSample(Reason.EMPTY_DOCUMENT, "The document has no text.")
    images = read_images(record)
    placeholders = text.count(IMAGE_PLACEHOLDER)
    if placeholders != len(images):
        raise BadSample(
            Reason.IMAGE_COUNT,
            f"The text has {placeholders} {IMAGE_PLACEHOLDER} for a record with {len(images)} "
            f"image(s).",
        )
    return DocumentSample(
        key=key, source=source, text=text, images=images, max_tiles=read_max_tiles(record)
    )
