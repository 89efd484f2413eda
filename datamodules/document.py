"""From a document to tokens: all of its text is learnt, its images are not."""

import re
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.conversation import RenderedConversation, tokenize_conversation

# First and last position of an image in a token sequence, [start, end).
Span = tuple[int, int]


def tokenize_document(
    text: str, tokenizer: PreTrainedTokenizerBase, image_text: re.Pattern[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises a document between the tokens that begin and end a text.

    Args:
        text: The text, with what stands for images.
        tokenizer: A fast tokenizer; one without a token for the beginning adds none.
        image_text: Matches what stands for images, which is not learnt.

    Returns:
        Token ids int64 [length] and whether each is learnt, bool [length].
    """
    begin = tokenizer.bos_token or ""
    whole = f"{begin}{text}{tokenizer.eos_token or ''}"
    rendered = RenderedConversation(text=whole, spans=((len(begin), len(whole)),))
    return tokenize_conversation(rendered, tokenizer, image_text)


def cut_position(length: int, limit: int, images: Sequence[Span]) -> int:
    """Finds where a document is cut so that no image is cut in two, or left without a text.

    Args:
        length: Positions of the document.
        limit: Positions that are allowed.
        images: The positions of each image, in order.

    Returns:
        The number of positions that are kept.
    """
    if length <= limit:
        return length
    end = limit
    # An image at the very end would have no text to help with.
    for start, stop in reversed(images):
        if stop >= end > start:
            end = start
    return end
