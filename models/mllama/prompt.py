"""How a turn's text with image placeholders becomes a message for the chat template."""

from typing import Any, Final

IMAGE_PLACEHOLDER: Final = "<image>"
"""What a user writes where an image stands."""

IMAGE_TOKEN: Final = "<|image|>"
"""What the chat template prints for an image; its id is the tokenizer's and the configuration's."""

TEMPLATE_ARGUMENTS: Final = {"date_string": "26 Jul 2024"}
"""Passed to the chat template. Llama's prints today's date otherwise, and a prompt that changes
from day to day would make two runs over the same data differ."""


def message_content(text: str) -> list[dict[str, str]]:
    """Splits a text at its image placeholders.

    One newline directly after a placeholder belongs to the placeholder and is dropped.

    Args:
        text: Text with any number of placeholders, anywhere.

    Returns:
        Parts `{"type": "text", "text": ...}` and `{"type": "image"}` in the order of the text;
        empty texts are left out.
    """
    first, *following = text.split(IMAGE_PLACEHOLDER)
    parts = [{"type": "text", "text": first}]
    for rest in following:
        parts += [{"type": "image"}, {"type": "text", "text": rest.removeprefix("\n")}]
    return [part for part in parts if part.get("text") != ""]


def chat_message(role: str, text: str) -> dict[str, Any]:
    """Makes the message of one turn.

    Llama's template reads the content of a system turn as a string, and of all others as parts.

    Args:
        role: system, user or assistant.
        text: Text with any number of placeholders.
    """
    if role == "system" and IMAGE_PLACEHOLDER not in text:
        return {"role": role, "content": text}
    return {"role": role, "content": message_content(text)}
