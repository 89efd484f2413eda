"""What encoding needs to know of a model of the MLlama family."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from transformers import MllamaConfig, MllamaImageProcessor, PreTrainedTokenizerBase

from datamodules.assets import (
    EncodingAssets,
    check_image_processor,
    check_image_token,
    control_tokens,
    find_image_token,
    load_tokenizer,
    require_image_processor,
)
from datamodules.conversation import ChatTemplate, GivenTemplate, check_chat_template
from models.checkpoint_paths import find_assets
from models.mllama.prompt import IMAGE_PLACEHOLDER, IMAGE_TOKEN, TEMPLATE_ARGUMENTS, chat_message
from models.mllama.tiling import supported_canvases

# Where processors of before 4.50 keep the chat template; it goes before the tokenizer's own.
_LEGACY_TEMPLATE = "chat_template.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MllamaAssets(EncodingAssets):
    """The parts of an assets folder that encoding uses; `max_tiles` is what the model has."""


def load_mllama_assets(folder: str, conversation_template: GivenTemplate = None) -> MllamaAssets:
    """Reads an assets folder: configuration, image processor and tokenizer.

    Args:
        folder: The folder, or a checkpoint or the folder of a run that has one.
        conversation_template: Goes before the tokenizer's own.

    Raises:
        ValueError: The folder or its tokenizer lacks something that encoding needs.
    """
    folder = str(find_assets(folder))
    config = MllamaConfig.from_pretrained(folder)
    _check_tiling(config, folder)
    tokenizer = load_tokenizer(folder)
    legacy = Path(folder) / _LEGACY_TEMPLATE
    if legacy.is_file():
        tokenizer.chat_template = json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    image = _image_token(tokenizer, config, folder)
    template = check_chat_template(
        tokenizer,
        chat_message,
        ("a", f"{IMAGE_PLACEHOLDER}a"),
        TEMPLATE_ARGUMENTS,
        conversation_template,
    )
    _check_image_turn(template)
    return MllamaAssets(
        template=template,
        image_token_id=image,
        pad_token_id=tokenizer.pad_token_id,
        tile_size=config.vision_config.image_size,
        max_tiles=config.vision_config.max_num_tiles,
        control_tokens=control_tokens(tokenizer),
    )


def _check_tiling(config: MllamaConfig, folder: str) -> None:
    """Proves that the images are cut for inference as they are cut here."""
    vision = config.vision_config
    canvases = [
        [canvas.rows, canvas.columns] for canvas in supported_canvases(vision.max_num_tiles)
    ]
    if [list(ratio) for ratio in vision.supported_aspect_ratios] != canvases:
        raise ValueError(
            f"The configuration in {folder} has supported_aspect_ratios="
            f"{vision.supported_aspect_ratios}, but max_num_tiles={vision.max_num_tiles} needs "
            f"{canvases}."
        )
    require_image_processor(folder)
    processor = MllamaImageProcessor.from_pretrained(folder)
    side = vision.image_size
    wanted = {
        "size": {"height": side, "width": side},
        "max_image_tiles": vision.max_num_tiles,
        "resample": int(Image.Resampling.BILINEAR),
        "do_convert_rgb": True,
    }
    check_image_processor(processor, wanted, folder)


def _image_token(tokenizer: PreTrainedTokenizerBase, config: MllamaConfig, folder: str) -> int:
    image = find_image_token(tokenizer, IMAGE_TOKEN, folder)
    check_image_token(image, IMAGE_TOKEN, config.image_token_index, folder)
    read = tokenizer.encode(f"a{IMAGE_TOKEN}{IMAGE_TOKEN}a", add_special_tokens=False)
    if read.count(image) != 2:
        raise ValueError(
            f"The tokenizer in {folder} reads two images between letters as {read}, but "
            f"{IMAGE_TOKEN} must be one token each time."
        )
    return image


def _check_image_turn(template: ChatTemplate) -> None:
    messages = [chat_message("user", f"{IMAGE_PLACEHOLDER}a{IMAGE_PLACEHOLDER}")]
    printed = template.text(messages).count(IMAGE_TOKEN)
    if printed != 2:
        raise ValueError(
            f"The chat template of {template.tokenizer.name_or_path!r} prints {printed} "
            f"{IMAGE_TOKEN} for a turn with two images, but must print one for each."
        )
