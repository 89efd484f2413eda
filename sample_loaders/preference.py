"""Preferences: one question about images, an answer that people chose and one they rejected."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sample_loaders.conversation import (
    IMAGE_PLACEHOLDER,
    ROLE_NAMES,
    ConversationSample,
    Turn,
    parse_llava,
)
from sample_loaders.errors import BadSample, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSample:
    """A conversation that ends with a question, and two answers to it.

    Attributes:
        key: Names the record for people and for the list of bad samples.
        source: Names the file or data set that the record came from.
        turns: The conversation up to its last question.
        chosen: The better answer.
        rejected: The worse one.
        images: Image names in the order of their placeholders, over all turns.
        max_tiles: No image takes more tiles than this; None leaves it to the model.
    """

    key: str
    source: str
    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    images: tuple[str, ...]
    max_tiles: int | None = None

    def conversations(self) -> tuple[ConversationSample, ConversationSample]:
        """Returns the conversation with the chosen and with the rejected answer."""
        chosen = ConversationSample(
            key=self.key,
            source=self.source,
            turns=(*self.turns, Turn(role="assistant", text=self.chosen)),
            images=self.images,
            max_tiles=self.max_tiles,
            learns_last_answer_only=True,
        )
        last = Turn(role="assistant", text=self.rejected)
        return chosen, replace(chosen, turns=(*self.turns, last))


def is_preference(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is meant as a preference: it has no last answer of its own."""
    turns = record.get("conversations")
    last = turns[-1] if isinstance(turns, list) and turns else None
    is_answered = isinstance(last, Mapping) and ROLE_NAMES.get(str(last.get("from"))) == "assistant"
    return ("chosen" in record or "rejected" in record) and not is_answered


def parse_preference(record: Mapping[str, Any], key: str, source: str) -> PreferenceSample:
    """Reads one preference.

    The form is that of LLaVA JSON with a question as its last turn, and `chosen` and `rejected`
    beside `conversations`; each is a string, or a turn `{"from": "gpt", "value": ...}`.

    Args:
        record: The decoded JSON object.
        key: The name that the sample goes by.
        source: The name of the file or data set.

    Raises:
        BadSample: The record cannot be used; the reason is one of `Reason`.
    """
    chosen, rejected = (_read_answer(record, name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise BadSample(Reason.EQUAL_ANSWERS, "The chosen and the rejected answer are the same.")
    turns = record.get("conversations")
    if isinstance(turns, list):
        record = {**record, "conversations": [*turns, {"from": "gpt", "value": chosen}]}
    sample = parse_llava(record, key, source)
    return PreferenceSample(
        key=key,
        source=source,
        turns=sample.turns[:-1],
        chosen=chosen,
        rejected=rejected,
        images=sample.images,
        max_tiles=sample.max_tiles,
    )


def _read_answer(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise BadSample(Reason.MISSING_KEY, f'The record has no "{name}".')
    answer = record[name]
    if isinstance(answer, Mapping):
        if ROLE_NAMES.get(str(answer.get("from"))) != "assistant":
            raise BadSample(
                Reason.UNKNOWN_ROLE,
                f'"{name}" is from {answer.get("from")!r}, but must be from the assistant.',
            )
        answer = answer.get("value")
    if not isinstance(answer, str):
        raise BadSample(Reason.WRONG_TYPE, f'"{name}" is neither a string nor a turn.')
    if not answer.strip():
        raise BadSample(Reason.EMPTY_ANSWER, f'"{name}" has no text.')
    if IMAGE_PLACEHOLDER in answer:
        raise BadSample(
            Reason.IMAGE_COUNT, f'"{name}" holds {IMAGE_PLACEHOLDER}, but only questions may.'
        )
    return answer
