"""The small files of an MLlama directory: what a server needs, made or refused at import.

| file | when the source lacks it |
|---|---|
| config.json, tokenizer.json, tokenizer_config.json, preprocessor_config.json | refused |
| chat template | refused when it is nowhere; else put into all three places that readers look in: |
|               | chat_template.jinja, chat_template.json (older) and tokenizer_config.json |
| processor_config.json | made: it names the processor's class (the published models have none) |
| special_tokens_map.json | made from the tokenizer |
| generation_config.json | made from the token ids of config.json, as transformers would |

What is there is copied as it is; export writes the same files again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from transformers import GenerationConfig, MllamaProcessor
from transformers.models.mllama.image_processing_mllama import get_all_supported_aspect_ratios

from converters.asset_files import (
    OLDER_TEMPLATE_FILE,
    TEMPLATE_FILE,
    load_processor,
    read_json,
    require_files,
    require_fit,
    write_chat_template,
    write_json,
)
from models.mllama.description import read_assets_config

_REQUIRED = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


def complete_assets(assets: Path, source: str) -> None:
    """Make the files that can be derived, and check that all of them fit the model.

    Args:
        assets: copies of the directory's small files.
        source: what the user gave, for messages.

    Raises:
        ValueError: a file is missing that cannot be made, is damaged, or does not fit config.json.
    """
    require_files(assets, _REQUIRED, source)
    _write_chat_template(assets, source)
    processor = load_processor(assets, source, MllamaProcessor)
    _check_processor(assets, source, processor)
    if not (assets / "processor_config.json").is_file():
        write_json(assets / "processor_config.json", {"processor_class": "MllamaProcessor"})
    if not (assets / "special_tokens_map.json").is_file():
        with tempfile.TemporaryDirectory() as folder:
            processor.tokenizer.save_pretrained(folder)
            shutil.copyfile(
                Path(folder) / "special_tokens_map.json", assets / "special_tokens_map.json"
            )
    if not (assets / "generation_config.json").is_file():
        GenerationConfig.from_model_config(read_assets_config(assets)).save_pretrained(assets)


def _write_chat_template(assets: Path, source: str) -> None:
    """Put the template that AutoProcessor would use into each of its places."""
    tokenizer_config = read_json(assets / "tokenizer_config.json", source)
    template = _find_chat_template(assets, source, tokenizer_config)
    if not template:
        raise ValueError(
            f"hf: {source} has no chat template; add chat_template.jinja (a base model has none: "
            "take the one of its Instruct model)."
        )
    write_chat_template(assets, template, tokenizer_config)


def _find_chat_template(assets: Path, source: str, tokenizer_config: dict) -> str | None:
    # The order in which transformers' processors look: the .json file hides the .jinja one.
    if (assets / OLDER_TEMPLATE_FILE).is_file():
        return read_json(assets / OLDER_TEMPLATE_FILE, source).get("chat_template")
    if (assets / TEMPLATE_FILE).is_file():
        return (assets / TEMPLATE_FILE).read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template


def _check_processor(assets: Path, source: str, processor: MllamaProcessor) -> None:
    """Compare what the processor makes of an image and a text with what the model takes."""
    config = read_assets_config(assets)
    vision, images = config.vision_config, processor.image_processor
    side = {"height": vision.image_size, "width": vision.image_size}
    canvases = [list(canvas) for canvas in get_all_supported_aspect_ratios(vision.max_num_tiles)]
    image_id = (processor.image_token_id, config.image_token_index, "image_token_index")
    require_fit(
        source,
        [
            ("size", dict(images.size), side, "image_size"),
            ("max_image_tiles", images.max_image_tiles, vision.max_num_tiles, "max_num_tiles"),
            ("aspect ratios", vision.supported_aspect_ratios, canvases, "max_num_tiles"),
            ("id of <|image|>", *image_id),
        ],
    )
    for name in ("do_resize", "do_rescale", "do_normalize", "do_pad"):
        if not getattr(images, name):
            raise ValueError(
                f"hf: {name} is false in preprocessor_config.json of {source}; true is needed."
            )
