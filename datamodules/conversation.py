"""From a conversation to tokens and the positions that are learnt.

What is learnt is found by characters: the text of an answer begins where the chat template ends
when asked for a generation prompt, and ends with the token that closes the turn. The whole text is
tokenised once, and a token is supervised when it starts inside such a span. Nothing is ever looked
up among token ids, so an answer that repeats the question, or a tokenizer that merges across a
boundary, changes nothing.

The published code cuts the answers out of the template and matches the rest greedily. When an
answer holds a newline token of its own, that leaves the first such newline unlabelled and labels
the newline after the turn instead. This is a defect of the method, and not reproduced here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from models.nvila.hf_code.prompt_nvila_lite import IMAGE_TOKEN
from sample_loaders.conversation import Turn

IGNORED = -100

# The newline after a tile belongs to the image, so it is no part of an answer either.
_TILE_TEXT = re.compile(re.escape(IMAGE_TOKEN) + r"\n?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedConversation:
    """The text of a conversation and the character spans [start, end) that are learnt."""

    text: str
    spans: tuple[tuple[int, int], ...]


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Proves on a short dialogue that the chat template can give spans.

    Raises:
        ValueError: There is no template, or it does not suit.
    """
    # No system turn: some templates refuse one, which matters only to samples that have one.
    dialogue = [
        Turn(role="user", text="a"),
        Turn(role="assistant", text="b"),
        Turn(role="user", text="c"),
        Turn(role="assistant", text="d"),
    ]
    render_conversation(dialogue, tokenizer)


def render_conversation(
    turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase
) -> RenderedConversation:
    """Renders turns with the tokenizer's own chat template and finds the spans of the answers.

    A span holds the answer and the token that closes the turn, not the whitespace after it.

    Args:
        turns: The conversation, images already expanded.
        tokenizer: Any tokenizer with a chat template.

    Raises:
        ValueError: The tokenizer has no chat template, or the text of the first turns changes when
            turns follow, or an answer is not closed by a special token.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template, but one is needed."
        )
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    text = _apply(tokenizer, messages, prompt=False)
    spans = []
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = _apply(tokenizer, messages[:number], prompt=True)
        through = _apply(tokenizer, messages[: number + 1], prompt=False)
        if not (through.startswith(before) and text.startswith(through)):
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} changes earlier turns when "
                f"others follow, but must only append."
            )
        spans.append((len(before), _closed_end(through, len(before), tokenizer)))
    return RenderedConversation(text=text, spans=tuple(spans))


def tokenize_conversation(
    rendered: RenderedConversation, tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises a rendered conversation in one call.

    Args:
        rendered: The text and its spans.
        tokenizer: A fast tokenizer; it adds nothing, because the template holds all of the text.

    Returns:
        Token ids int64 [length] and whether each is learnt, bool [length].
    """
    encoding = tokenizer(
        rendered.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    learnt = np.zeros(len(rendered.text) + 1, dtype=bool)
    for start, end in rendered.spans:
        learnt[start:end] = True
    for tile in _TILE_TEXT.finditer(rendered.text):
        learnt[tile.start() : tile.end()] = False
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)
    starts = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0]
    return ids, learnt[starts]


def shifted_labels(ids: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    """Moves the targets to where they are predicted.

    Args:
        ids: Token ids int64 [length].
        supervised: Whether each token is learnt, bool [length].

    Returns:
        int64 [length]: at t the token wanted after position t, or -100. Nothing predicts the first
        token, and the last position predicts nothing.
    """
    labels = np.full(len(ids), IGNORED, dtype=np.int64)
    labels[:-1] = np.where(supervised[1:], ids[1:], IGNORED)
    return labels


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, prompt: bool
) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"The chat template of {tokenizer.name_or_path!r} refuses the turns {roles}: {error}."
        ) from error


def _closed_end(text: str, start: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns where the closing token of the answer that starts at `start` ends."""
    closed = text[start:].rstrip()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not any(closed.endswith(token) for token in special):
        raise ValueError(
            f"The chat template of {tokenizer.name_or_path!r} ends an answer with "
            f"{closed[-10:]!r}, but must close it with a special token."
        )
    return start + len(closed)
