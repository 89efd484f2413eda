"""Records whose text has another placeholder for images than `<image>`."""

from collections.abc import Mapping
from typing import Any

from sample_loaders.conversation import IMAGE_PLACEHOLDER


def with_our_placeholders(record: object, image_token: str) -> object:
    """Writes `<image>` for the placeholders of a record's text.

    Args:
        record: The decoded JSON value, of any form; the given one is left alone.
        image_token: The placeholder that it has.
    """
    if image_token == IMAGE_PLACEHOLDER or not isinstance(record, Mapping):
        return record
    changed: dict[str, Any] = dict(record)
    if isinstance(record.get("document"), str):
        changed["document"] = record["document"].replace(image_token, IMAGE_PLACEHOLDER)
    turns = record.get("conversations")
    if isinstance(turns, list):
        changed["conversations"] = [_replaced(turn, image_token) for turn in turns]
    return changed


def _replaced(turn: object, image_token: str) -> object:
    if isinstance(turn, Mapping) and isinstance(turn.get("value"), str):
        return {**turn, "value": turn["value"].replace(image_token, IMAGE_PLACEHOLDER)}
    return turn
