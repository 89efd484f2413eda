"""The JSON part of a sample: its text, whether training can read it, and its bytes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sample_loaders.conversation import IMAGE_PLACEHOLDER
from sample_loaders.document import parse_record
from sample_loaders.errors import BadSample


class BadRecord(Exception):  # noqa: N818 - it is about a record, not about the program
    """A record that training could not read; the text says why."""


def text_of(record: Mapping[str, Any]) -> str:
    """Returns all text of a record without the placeholders of images."""
    if "document" in record:
        text = str(record["document"])
    else:
        turns = record.get("conversations")
        assert isinstance(turns, list), "a reader gave a record that is neither of the two forms"
        text = "\n".join(str(turn.get("value", "")) for turn in turns)
    return text.replace(IMAGE_PLACEHOLDER, "")


def check_record(record: Mapping[str, Any], images: int) -> None:
    """Checks that training reads a record that goes into a shard.

    Args:
        record: Without its images.
        images: How many it has.

    Raises:
        BadRecord: It would be a bad sample of the shard.
    """
    named = {**record, "images": [str(number) for number in range(images)]}
    try:
        parse_record(named, "", "")
    except BadSample as error:
        raise BadRecord(error.message) from error


def json_part(record: Mapping[str, Any], images: Sequence[str]) -> bytes:
    """Writes a record and the names of its images as compact JSON with sorted keys.

    Raises:
        BadRecord: Its text is no Unicode.
    """
    content = {**record, "images": list(images)} if images else dict(record)
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a pair, which JSON can write and UTF-8 cannot
        raise BadRecord(f"The text has a character that is no Unicode: {error.reason}.") from error


def content_bytes(record: Mapping[str, Any]) -> bytes:
    """Returns what two records share that say the same, whatever they are called."""
    said = record["document"] if "document" in record else record["conversations"]
    return json.dumps(said, ensure_ascii=True, sort_keys=True).encode("ascii")
