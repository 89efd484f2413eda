"""Conversation records as shards hold them, from parsed ones and from questions with answers."""

from collections.abc import Iterable, Mapping
from typing import Any

from sample_loaders.conversation import Role, Turn

_SHARD_ROLES: Mapping[Role, str] = {"system": "system", "user": "human", "assistant": "gpt"}


def conversation_of_turns(turns: Iterable[Turn]) -> list[dict[str, str]]:
    """Returns turns in the names that shards use."""
    return [{"from": _SHARD_ROLES[turn.role], "value": turn.text} for turn in turns]


def conversation_about_image(pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Returns questions and their answers as turns, the image before the first question."""
    conversation: list[dict[str, Any]] = []
    for question, answer in pairs:
        asked = question if conversation else f"<image>\n{question}"
        conversation.append({"from": "human", "value": asked})
        conversation.append({"from": "gpt", "value": answer})
    return conversation
