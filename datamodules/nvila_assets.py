"""What encoding needs to know of a model of the NVILA-Lite family."""

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from datamodules.assets import EncodingAssets, control_tokens, find_image_token, load_tokenizer
from datamodules.conversation import GivenTemplate, Message, check_chat_template
from datamodules.plain_template import PlainTemplate
from models.checkpoint_paths import find_assets
from models.conversation_templates import PLAIN
from models.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.hf_code.prompt_nvila_lite import IMAGE_TOKEN

# The newline after a tile belongs to the image, so it is no part of an answer either.
TILE_TEXT = re.compile(re.escape(IMAGE_TOKEN) + r"\n?")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvilaAssets(EncodingAssets):
    """The parts of an assets folder that encoding uses; `max_tiles` counts no thumbnail.

    Attributes:
        newline_token_id: Id that closes every tile.
        tokens_per_tile: Image positions of a tile, the closing newline not counted.
    """

    newline_token_id: int
    tokens_per_tile: int


def nvila_message(role: str, text: str) -> Message:
    """Makes the message of one turn for the chat template."""
    return {"role": role, "content": text}


def load_nvila_assets(folder: str, conversation_template: GivenTemplate = None) -> NvilaAssets:
    """Reads an assets folder (`config.json` of a NVILALiteConfig and the tokenizer's files).

    Args:
        folder: The folder, or a checkpoint or the folder of a run that has one.
        conversation_template: Goes before the tokenizer's own.

    Raises:
        ValueError: The folder or its tokenizer lacks something that encoding needs.
    """
    folder = str(find_assets(folder))
    config = NVILALiteConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    image, newline = _image_tokens(tokenizer, folder)
    template = (
        PlainTemplate(tokenizer=tokenizer, image_text=TILE_TEXT)
        if conversation_template == PLAIN
        else check_chat_template(tokenizer, nvila_message, given=conversation_template)
    )
    return NvilaAssets(
        template=template,
        image_token_id=image,
        newline_token_id=newline,
        pad_token_id=tokenizer.pad_token_id,
        tile_size=config.tile_size,
        max_tiles=config.max_tiles,
        tokens_per_tile=config.tokens_per_tile,
        control_tokens=control_tokens(tokenizer, allowed=IMAGE_TOKEN),
    )


def _image_tokens(tokenizer: PreTrainedTokenizerBase, folder: str) -> tuple[int, int]:
    """Finds the ids of image and newline, and proves that tiles keep their tokens to themselves."""
    image = find_image_token(tokenizer, IMAGE_TOKEN, folder)
    newline = tokenizer.encode("\n", add_special_tokens=False)
    two_tiles = tokenizer.encode(f"{IMAGE_TOKEN}\n" * 2, add_special_tokens=False)
    if len(newline) != 1 or two_tiles != [image, *newline] * 2:
        raise ValueError(
            f"The tokenizer in {folder} reads two tiles as {two_tiles}, but {IMAGE_TOKEN} and a "
            f"newline must be one token each."
        )
    return image, newline[0]
