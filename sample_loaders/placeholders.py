"""Records whose text has another placeholder for images than `<image>`."""

from collections.abc import Mapping
from typing import Any

from sample_loaders.conversation import IMAGE_PLACEHOLDER
from sample_loaders.errors import BadSample, Reason


def with_our_placeholders(record: object, image_token: str) -> object:
    """Writes `<image>` for the placeholders of a record's text.

    Args:
        record: The decoded JSON value, of any form; the given one is left alone.
        image_token: The placeholder that it has.

    Raises:
        BadSample: The text holds `<image>` itself, which would be taken for a placeholder.
    """
    if image_token == IMAGE_PLACEHOLDER or not isinstance(record, Mapping):
        return record
    changed: dict[str, Any] = dict(record)
    for name in ("document", "chosen", "rejected"):
        if name in record:
            changed[name] = _replaced(record[name], image_token)
    turns = record.get("conversations")
    if isinstance(turns, list):
        changed["conversations"] = [_replaced(turn, image_token) for turn in turns]
    return changed


def _replaced(part: object, image_token: str) -> object:
    """Replaces in a text, or in what a turn says."""
    if isinstance(part, Mapping) and "value" in part:
        return {**part, "value": _replaced(part["value"], image_token)}
    if not isinstance(part, str):
        return part
    if IMAGE_PLACEHOLDER in part:
        raise BadSample(
            Reason.CONTROL_TOKEN,
            f"The text holds {IMAGE_PLACEHOLDER}, while {image_token!r} stands for images.",
        )
    return part.replace(image_token, IMAGE_PLACEHOLDER)
