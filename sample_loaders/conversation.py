"""Conversations about images: the typed sample, and the LLaVA JSON format that it is read from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sample_loaders.errors import BadSample, Reason

Role = Literal["system", "user", "assistant"]

IMAGE_PLACEHOLDER = "<image>"

# Speaker names seen in published LLaVA-style files, English and Japanese.
ROLE_NAMES: Mapping[str, Role] = {
    "system": "system",
    "システム": "system",
    "human": "user",
    "user": "user",
    "ユーザー": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "アシスタント": "assistant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one side says; every `<image>` in `text` stands for the next image of the sample."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationSample:
    """One conversation: optional system turn, then user and assistant in turns.

    Attributes:
        key: Names the record for people and for the list of bad samples.
        source: Names the file or data set that the record came from.
        turns: The conversation; the last turn is an answer.
        images: Image names in the order of their placeholders, over all turns.
        max_tiles: No image takes more tiles than this; None leaves it to the model.
        learns_last_answer_only: The answers before the last are context, and not learnt.
    """

    key: str
    source: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    max_tiles: int | None = None
    learns_last_answer_only: bool = False


def parse_llava(record: object, key: str, source: str) -> ConversationSample:
    """Reads one record of LLaVA JSON.

    The form is `{"image": str | list, "conversations": [{"from": ..., "value": ...}, ...]}`, with
    `images` as another name of `image`, and neither for text only. Any turn may hold any number
    of placeholders. A record with images and no placeholder at all, as some published files have
    it, gets its placeholders at the front of the first user turn. `max_tiles` may bound the tiles
    of an image.

    Args:
        record: The decoded JSON value.
        key: The name that the sample goes by.
        source: The name of the file or data set.

    Raises:
        BadSample: The record cannot be used; the reason is one of `Reason`.
    """
    if not isinstance(record, Mapping):
        raise BadSample(Reason.WRONG_TYPE, f"The record is a {_kind(record)}, not an object.")
    turns = _read_turns(record)
    _check_order(turns)
    images = read_images(record)
    return ConversationSample(
        key=key,
        source=source,
        turns=_place_images(turns, len(images)),
        images=images,
        max_tiles=read_max_tiles(record),
    )


def read_max_tiles(record: Mapping[str, Any]) -> int | None:
    """Reads the bound on the tiles of an image that a record may have.

    Raises:
        BadSample: It is no positive integer.
    """
    value = record.get("max_tiles")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadSample(
            Reason.WRONG_TYPE, f'"max_tiles" is {value!r}, but must be a positive integer.'
        )
    return value


def _read_turns(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    if "conversations" not in record:
        raise BadSample(Reason.MISSING_KEY, 'The record has no "conversations".')
    entries = record["conversations"]
    if not isinstance(entries, list):
        raise BadSample(Reason.WRONG_TYPE, f'"conversations" is a {_kind(entries)}, not a list.')
    return tuple(_read_turn(entry, number) for number, entry in enumerate(entries))


def _read_turn(entry: object, number: int) -> Turn:
    if not isinstance(entry, Mapping):
        raise BadSample(Reason.WRONG_TYPE, f"Turn {number} is a {_kind(entry)}, not an object.")
    for name in ("from", "value"):
        if name not in entry:
            raise BadSample(Reason.MISSING_KEY, f'Turn {number} has no "{name}".')
        if not isinstance(entry[name], str):
            raise BadSample(
                Reason.WRONG_TYPE,
                f'"{name}" of turn {number} is a {_kind(entry[name])}, not a string.',
            )
    role = ROLE_NAMES.get(entry["from"])
    if role is None:
        raise BadSample(
            Reason.UNKNOWN_ROLE,
            f'Turn {number} is from "{entry["from"]}", which is none of {", ".join(ROLE_NAMES)}.',
        )
    if entry["from"] == "システム" and number > 0:
        role = "assistant"  # LLaVA-JP's name for it; only the first turn can be the system's
    return Turn(role=role, text=entry["value"])


def _check_order(turns: tuple[Turn, ...]) -> None:
    dialogue = turns[1:] if turns and turns[0].role == "system" else turns
    if not dialogue:
        raise BadSample(Reason.EMPTY_CONVERSATION, "The conversation has no question and answer.")
    if dialogue[0].role != "user":
        raise BadSample(
            Reason.NOT_FROM_HUMAN,
            f"The conversation starts with the {dialogue[0].role}, not with the human.",
        )
    first = len(turns) - len(dialogue)
    for offset, turn in enumerate(dialogue):
        expected = "assistant" if offset % 2 else "user"
        if turn.role != expected:
            raise BadSample(
                Reason.NOT_ALTERNATING,
                f"Turn {first + offset} is from the {turn.role}, where the {expected} is due.",
            )
        if expected == "assistant" and not turn.text.strip():
            raise BadSample(
                Reason.EMPTY_ANSWER, f"The answer in turn {first + offset} has no text."
            )
    if dialogue[-1].role != "assistant":
        raise BadSample(
            Reason.NO_FINAL_ANSWER, "The conversation ends with a question that has no answer."
        )


def read_images(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Reads the names of a record's images.

    Raises:
        BadSample: They are not names.
    """
    given = [record[name] for name in ("image", "images") if record.get(name) is not None]
    if len(given) > 1:
        raise BadSample(Reason.WRONG_TYPE, 'The record has both "image" and "images".')
    if not given:
        return ()
    names = [given[0]] if isinstance(given[0], str) else given[0]
    if not isinstance(names, list):
        raise BadSample(
            Reason.WRONG_TYPE, f'"image" is a {_kind(names)}, not a string or a list of strings.'
        )
    for name in names:
        if not isinstance(name, str) or not name:
            raise BadSample(
                Reason.WRONG_TYPE, f'"image" holds {name!r}, which is not the name of a file.'
            )
    return tuple(names)


def _place_images(turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if placeholders == 0 and images > 0:
        front = f"{IMAGE_PLACEHOLDER}\n" * images
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        moved = replace(turns[first], text=front + turns[first].text)
        return (*turns[:first], moved, *turns[first + 1 :])
    if placeholders != images:
        raise BadSample(
            Reason.IMAGE_COUNT,
            f"The text has {placeholders} {IMAGE_PLACEHOLDER} for a record with {images} image(s).",
        )
    return turns


def _kind(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else "value")
