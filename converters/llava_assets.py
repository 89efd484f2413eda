"""The small files of a LLaVA directory: what a server needs, made or refused at import.

Older directories lack what current processors want to know of the model (the patch size, and which
tokens of the vision tower are features); without it they put one slot into the prompt, or none.
What is there is copied as it is; export writes the same files again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaProcessor, PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin

from converters.asset_files import (
    load_processor,
    read_json,
    require_files,
    require_fit,
    write_chat_template,
    write_json,
)
from models.llava.description import (
    CLASS_TOKENS,
    input_side,
    processor_patch_size,
    read_assets_config,
)

_REQUIRED = ("config.json", "tokenizer_config.json", "preprocessor_config.json")


def complete_assets(assets: Path, source: str) -> None:
    """Write what the processor must know, and check that it fits the model.

    Args:
        assets: copies of the directory's small files.
        source: what the user gave, for messages.

    Raises:
        ValueError: a file is missing or damaged, or does not fit config.json.
    """
    require_files(assets, _REQUIRED, source)
    config = read_assets_config(assets)
    path = assets / "processor_config.json"
    found = read_json(path, source) if path.is_file() else {}
    wanted: dict[str, Any] = {
        "processor_class": "LlavaProcessor",
        "patch_size": processor_patch_size(config),
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": CLASS_TOKENS.get(config.vision_config.model_type, 0),
        "image_token": "<image>",
    }
    for name, value in wanted.items():
        if found.get(name) not in (None, value):
            raise ValueError(
                f"hf: {name} {found[name]!r} in processor_config.json of {source} does not fit "
                f"config.json, which asks for {value!r}."
            )
    completed = found | wanted
    if completed != found:
        write_json(path, completed)
    _check_processor(assets, source)


def write_processor(
    folder: Path,
    config: LlavaConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: ImageProcessingMixin,
) -> None:
    """Write a LlavaProcessor that fits a model, and the tokenizer's chat template everywhere."""
    LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=processor_patch_size(config),
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=CLASS_TOKENS[config.vision_config.model_type],
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    tokenizer_config = read_json(folder / "tokenizer_config.json", str(folder))
    write_chat_template(folder, tokenizer.chat_template, tokenizer_config)


def _check_processor(assets: Path, source: str) -> None:
    """Compare what the processor makes of an image with what the model takes."""
    processor = load_processor(assets, source, LlavaProcessor)
    config, images = read_assets_config(assets), processor.image_processor
    side = input_side(config)
    crop = dict(getattr(images, "crop_size", None) or images.size)
    image_id = (processor.image_token_id, config.image_token_index, "image_token_index")
    require_fit(
        source,
        [
            ("crop_size", crop, {"height": side, "width": side}, "image_size"),
            ("id of <image>", *image_id),
        ],
    )
