"""What encoding needs to know of a model of any family: its tokenizer, its tiles."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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


def check_image_token(image: int, name: str, expected: int, folder: str) -> None:
    """Compares the tokenizer's id of an image with the configuration's.

    Raises:
        ValueError: They differ.
    """
    if image != expected:
        raise ValueError(
            f"The configuration in {folder} has image_token_index={expected}, but "
            f"{name} is token {image} of the tokenizer."
        )


def require_image_processor(folder: str) -> None:
    """Refuses a folder without the file of an image processor.

    Raises:
        ValueError: There is none.
    """
    if not (Path(folder) / "preprocessor_config.json").is_file():
        raise ValueError(f"There is no preprocessor_config.json in {folder}, but one is needed.")


def check_image_processor(processor: Any, wanted: Mapping[str, Any], folder: str) -> None:
    """Compares attributes of an image processor with what the model needs.

    Raises:
        ValueError: One differs.
    """
    for name, value in wanted.items():
        given = getattr(processor, name)
        given = dict(given) if isinstance(value, dict) else given
        if given != value:
            raise ValueError(
                f"The image processor in {folder} has {name}={given}, but the model needs {value}."
            )


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
