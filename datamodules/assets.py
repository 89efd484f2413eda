"""What encoding needs to know of a model: its tokenizer and the shape of its image positions."""

import re
from dataclasses import dataclass

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.conversation import check_chat_template
from models.checkpoint_paths import find_assets
from models.nvila.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.nvila.hf_code.prompt_nvila_lite import IMAGE_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingAssets:
    """The parts of an assets folder that encoding uses.

    Attributes:
        tokenizer: A fast tokenizer with a chat template and the image token.
        image_token_id: Id that stands at every position of an image.
        newline_token_id: Id that closes every tile.
        pad_token_id: Id that fills rows of a batch.
        tile_size: Side of a tile in pixels.
        tokens_per_tile: Image positions of a tile, the closing newline not counted.
        control_tokens: Matches every special token that must not stand in a text.
    """

    tokenizer: PreTrainedTokenizerBase
    image_token_id: int
    newline_token_id: int
    pad_token_id: int
    tile_size: int
    tokens_per_tile: int
    control_tokens: re.Pattern[str]


def load_assets(folder: str) -> EncodingAssets:
    """Reads an assets folder (`config.json` of a NVILALiteConfig and the tokenizer's files).

    Args:
        folder: The folder, or a checkpoint or the folder of a run that has one.

    Raises:
        ValueError: The folder or its tokenizer lacks something that encoding needs.
    """
    folder = str(find_assets(folder))
    config = NVILALiteConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise ValueError(f"The tokenizer in {folder} is slow, but a fast one is needed.")
    check_chat_template(tokenizer)
    if tokenizer.pad_token_id is None:
        raise ValueError(f"The tokenizer in {folder} has no pad token, but one is needed.")
    image, newline = _image_tokens(tokenizer, folder)
    return EncodingAssets(
        tokenizer=tokenizer,
        image_token_id=image,
        newline_token_id=newline,
        pad_token_id=tokenizer.pad_token_id,
        tile_size=config.tile_size,
        tokens_per_tile=config.tokens_per_tile,
        control_tokens=_control_tokens(tokenizer),
    )


def _image_tokens(tokenizer: PreTrainedTokenizerBase, folder: str) -> tuple[int, int]:
    """Finds the ids of image and newline, and proves that tiles keep their tokens to themselves."""
    image = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if image is None:
        raise ValueError(
            f"The tokenizer in {folder} has no {IMAGE_TOKEN} token, but one is needed."
        )
    newline = tokenizer.encode("\n", add_special_tokens=False)
    two_tiles = tokenizer.encode(f"{IMAGE_TOKEN}\n" * 2, add_special_tokens=False)
    if len(newline) != 1 or two_tiles != [image, *newline] * 2:
        raise ValueError(
            f"The tokenizer in {folder} reads two tiles as {two_tiles}, but {IMAGE_TOKEN} and a "
            f"newline must be one token each."
        )
    return image, newline[0]


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = (added | set(tokenizer.all_special_tokens)) - {IMAGE_TOKEN}
    # Longest first, so that a token is not taken for another one that it begins with.
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
