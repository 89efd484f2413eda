"""How a turn's text with image placeholders becomes a message for a LLaVA's chat template.

Images stand at the front of their turn, each on a line of its own, wherever the text has them: so
LLaVA was trained, and so the template of the published Hugging Face models prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jinja2

IMAGE_TOKEN: Final = "<image>"
"""What a user writes where an image stands, and what the template prints for it."""


def chat_message(role: str, text: str, parts: bool = True) -> dict[str, Any]:
    """Makes the message of one turn.

    Args:
        role: system, user or assistant.
        text: Text with any number of placeholders.
        parts: Whether the template reads contents as lists of parts, or as one string.
    """
    images = text.count(IMAGE_TOKEN)
    if images:
        text = text.replace(f"{IMAGE_TOKEN}\n", "").replace(IMAGE_TOKEN, "").strip()
    if not parts:
        return {"role": role, "content": (f"{IMAGE_TOKEN}\n" * images + text)}
    content: list[dict[str, str]] = [{"type": "image"}] * images
    if text or not images:
        content = [*content, {"type": "text", "text": text}]
    return {"role": role, "content": content}


def takes_parts(render: Callable[[Sequence[dict[str, Any]]], str]) -> bool:
    """Returns whether a chat template prints an image that a message has as a part.

    Args:
        render: The template.
    """
    try:
        return IMAGE_TOKEN in render([chat_message("user", f"{IMAGE_TOKEN}a")])
    # A template that joins strings to contents of another form ends in a TypeError.
    except (jinja2.TemplateError, TypeError):
        return False
