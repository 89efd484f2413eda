"""What encoding needs to know of a model of the LLaVA family."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from datamodules.assets import (
    ConversationText,
    EncodingAssets,
    check_image_token,
    control_tokens,
    find_image_token,
    load_tokenizer,
)
from datamodules.conversation import (
    GivenTemplate,
    Message,
    check_chat_template,
    unproved_template,
)
from datamodules.plain_template import PlainTemplate
from datamodules.square_images import SquareImages, load_square_images
from models.checkpoint_paths import find_assets
from models.conversation_templates import PLAIN
from models.llava.description import input_side, read_assets_config, slots_per_image
from models.llava.prompt import IMAGE_TOKEN, chat_message, takes_parts

# The newline after an image belongs to it, so it is no part of an answer.
IMAGE_TEXT = re.compile(re.escape(IMAGE_TOKEN) + r"\n?")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaAssets(EncodingAssets):
    """The parts of an assets folder that encoding uses; an image is one tile.

    Attributes:
        slots_per_image: Positions of an image.
        images: Makes the tile of an image.
        message: Makes the message of one turn for the template.
    """

    slots_per_image: int
    images: SquareImages
    message: Callable[[str, str], Message]


def load_llava_assets(folder: str, conversation_template: GivenTemplate = None) -> LlavaAssets:
    """Reads an assets folder: configuration, image processor and tokenizer.

    Args:
        folder: The folder, or a checkpoint or the folder of a run that has one.
        conversation_template: Instead of the tokenizer's.

    Raises:
        ValueError: The folder or its tokenizer lacks something that encoding needs.
    """
    folder = str(find_assets(folder))
    config = read_assets_config(folder)
    tokenizer = load_tokenizer(folder)
    image = find_image_token(tokenizer, IMAGE_TOKEN, folder)
    check_image_token(image, IMAGE_TOKEN, config.image_token_index, folder)
    if tokenizer.encode(f"{IMAGE_TOKEN}\na", add_special_tokens=False).count(image) != 1:
        raise ValueError(f"The tokenizer in {folder} must read {IMAGE_TOKEN} as one token.")

    side = input_side(config)
    template, message = _open_template(tokenizer, conversation_template)
    return LlavaAssets(
        template=template,
        message=message,
        image_token_id=image,
        pad_token_id=tokenizer.pad_token_id,
        tile_size=side,
        max_tiles=1,
        slots_per_image=slots_per_image(config),
        images=load_square_images(folder, side),
        control_tokens=control_tokens(tokenizer, allowed=IMAGE_TOKEN),
    )


def _open_template(
    tokenizer: PreTrainedTokenizerBase, given: GivenTemplate
) -> tuple[ConversationText, Callable[[str, str], Message]]:
    """Chooses the template, and the form of messages that prints their images."""
    if given == PLAIN:
        plain = PlainTemplate(tokenizer=tokenizer, image_text=re.compile(re.escape(IMAGE_TOKEN)))
        return plain, partial(chat_message, parts=False)
    parts = takes_parts(unproved_template(tokenizer, given=given).apply)
    message = partial(chat_message, parts=parts)
    questions = ("a", f"{IMAGE_TOKEN}a")
    return check_chat_template(tokenizer, message, questions, given=given), message
