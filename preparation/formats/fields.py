"""Typed access to the fields of records, which may hold anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from preparation.formats.rows import Refusal
from preparation.reasons import RejectionReason

IMAGE_PLACEHOLDER = "<image>"
_LITERAL_PLACEHOLDER = "<IMAGE>"


def as_object(value: Any, what: str = "The record") -> Mapping[str, Any]:
    """Returns a JSON object as it is.

    Raises:
        Refusal: It is another kind of value.
    """
    if not isinstance(value, Mapping):
        raise _wrong_type(f"{what} is a {type(value).__name__}, not an object.")
    return value


def text_field(record: Mapping[str, Any], name: str) -> str:
    """Returns a field that must be text and not blank.

    Raises:
        Refusal: It is missing, of another type or blank.
    """
    value = record.get(name)
    if not isinstance(value, str):
        raise _wrong_type(f'"{name}" is {_described(value)}, not text.')
    if not value.strip():
        raise Refusal(RejectionReason.EMPTY_TEXT, f'"{name}" has no text.')
    return value


def list_field(record: Mapping[str, Any], name: str) -> list[Any]:
    """Returns a field that must be a list; arrays and tuples count as lists.

    Raises:
        Refusal: It is missing or of another type.
    """
    value: Any = record.get(name)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise _wrong_type(f'"{name}" is {_described(value)}, not a list.')
    return list(value)


def texts_field(record: Mapping[str, Any], name: str) -> list[str]:
    """Returns a field that must be a list of texts.

    Raises:
        Refusal: It is not.
    """
    values = list_field(record, name)
    for value in values:
        if not isinstance(value, str):
            raise _wrong_type(f'"{name}" holds {_described(value)}, not only texts.')
    return values


def number_or_none(value: Any) -> float | None:
    """Returns a number as float; None for what is none, or is not finite."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):  # an integer of 400 digits, an array
        return None
    return number if number - number == 0 else None


def identity(record: Mapping[str, Any], names: Sequence[str] = ("id", "url")) -> dict[str, str]:
    """Returns `{"id": ...}` of the first field that is given, as text, or nothing."""
    for name in names:
        value: Any = record.get(name)
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            return {"id": str(value)}
    return {}


def plain_text(text: str) -> str:
    """Returns text of a source in which `<image>` stands for nothing but itself."""
    return text.replace(IMAGE_PLACEHOLDER, _LITERAL_PLACEHOLDER)


def _described(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _wrong_type(message: str) -> Refusal:
    return Refusal(RejectionReason.INVALID_RECORD, message)
