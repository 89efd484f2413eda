"""What encoding needs to know of a model of any family: its tokenizer, its tiles."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.conversation import Message, RenderedConversation


class ConversationText(Protocol):
    """Renders conversations: a proved chat template, or the plain text of a first stage."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that it belongs to."""
        ...

    def render(self, messages: Sequence[Message]) -> RenderedConversation:
        """Renders a conversation and finds what is learnt.

        Raises:
            BadSample: It cannot be rendered.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingAssets:
    """The parts of an assets folder that encoding uses.

    Attributes:
        template: Renders conversations; of a fast tokenizer.
        image_token_id: Id that stands at the positions of images.
        pad_token_id: Id that fills rows of a batch.
        tile_size: Side of a tile in pixels.
        max_tiles: Largest number of tiles of an image, if the data set no other bound.
        control_tokens: Matches every special token that must not stand in a text.
    """

    template: ConversationText
    image_token_id: int
    pad_token_id: int
    tile_size: int
    max_tiles: int
    control_tokens: re.Pattern[str]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the template belongs to."""
        return self.template.tokenizer


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Reads a tokenizer that can give offsets and fill rows.

    Raises:
        ValueError: It is a slow one, or has no pad token.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise ValueError(f"The tokenizer in {folder} is slow, but a fast one is needed.")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"The tokenizer in {folder} has no pad token, but one is needed.")
    return tokenizer


def find_image_token(tokenizer: PreTrainedTokenizerBase, name: str, folder: str) -> int:
    """Finds the id of a token.

    Raises:
        ValueError: The tokenizer does not have it.
    """
    image = tokenizer.get_vocab().get(name)
    if image is None:
        raise ValueError(f"The tokenizer in {folder} has no {name} token, but one is needed.")
    return image


def control_tokens(tokenizer: PreTrainedTokenizerBase, allowed: str = "") -> re.Pattern[str]:
    """Makes the pattern of all special tokens but the one that a text may hold.

    Args:
        tokenizer: The tokenizer.
        allowed: The placeholder of images, where that is a special token itself.
    """
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = (added | set(tokenizer.all_special_tokens)) - {allowed}
    # Longest first, so that a token is not taken for another one that it begins with.
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
