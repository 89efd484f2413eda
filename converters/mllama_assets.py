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

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, GenerationConfig, MllamaProcessor
from transformers.models.mllama.image_processing_mllama import get_all_supported_aspect_ratios

from models.mllama.description import read_assets_config

_REQUIRED = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
_TEMPLATE, _OLDER_TEMPLATE = "chat_template.jinja", "chat_template.json"


def complete_assets(assets: Path, source: str) -> None:
    """Make the files that can be derived, and check that all of them fit the model.

    Args:
        assets: copies of the directory's small files.
        source: what the user gave, for messages.

    Raises:
        ValueError: a file is missing that cannot be made, is damaged, or does not fit config.json.
    """
    missing = [name for name in _REQUIRED if not (assets / name).is_file()]
    if missing:
        raise ValueError(f"hf: {source} lacks {', '.join(missing)}; a server needs every one.")
    _write_chat_template(assets, source)
    processor = _load_processor(assets, source)
    _check_processor(assets, source, processor)
    if not (assets / "processor_config.json").is_file():
        _write_json(assets / "processor_config.json", {"processor_class": "MllamaProcessor"})
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
    tokenizer_config = _read_json(assets / "tokenizer_config.json", source)
    template = _find_chat_template(assets, source, tokenizer_config)
    if not template:
        raise ValueError(
            f"hf: {source} has no chat template; add chat_template.jinja (a base model has none: "
            "take the one of its Instruct model)."
        )
    (assets / _TEMPLATE).write_text(template, encoding="utf-8")
    _write_json(assets / _OLDER_TEMPLATE, {"chat_template": template})
    if tokenizer_config.get("chat_template") != template:
        _write_json(
            assets / "tokenizer_config.json", tokenizer_config | {"chat_template": template}
        )


def _find_chat_template(assets: Path, source: str, tokenizer_config: dict) -> str | None:
    # The order in which transformers' processors look: the .json file hides the .jinja one.
    if (assets / _OLDER_TEMPLATE).is_file():
        return _read_json(assets / _OLDER_TEMPLATE, source).get("chat_template")
    if (assets / _TEMPLATE).is_file():
        return (assets / _TEMPLATE).read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template


def _load_processor(assets: Path, source: str) -> MllamaProcessor:
    try:
        processor = AutoProcessor.from_pretrained(assets)
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"hf: transformers cannot load the tokenizer and processor of {source} ({reason})."
        ) from error
    if not isinstance(processor, MllamaProcessor):
        raise ValueError(
            f"hf: {source} has a {type(processor).__name__}; a MllamaProcessor is expected."
        )
    return processor


def _check_processor(assets: Path, source: str, processor: MllamaProcessor) -> None:
    """Compare what the processor makes of an image and a text with what the model takes."""
    config = read_assets_config(assets)
    vision, images = config.vision_config, processor.image_processor
    side = {"height": vision.image_size, "width": vision.image_size}
    canvases = [list(canvas) for canvas in get_all_supported_aspect_ratios(vision.max_num_tiles)]
    wanted: dict[str, tuple[Any, Any, str]] = {
        "size": (dict(images.size), side, "image_size"),
        "max_image_tiles": (images.max_image_tiles, vision.max_num_tiles, "max_num_tiles"),
        "aspect ratios": (vision.supported_aspect_ratios, canvases, "max_num_tiles"),
        "id of <|image|>": (
            processor.image_token_id,
            config.image_token_index,
            "image_token_index",
        ),
    }
    for name, (found, expected, field) in wanted.items():
        if found != expected:
            raise ValueError(
                f"hf: {name} {found} of {source} does not fit {field} of config.json, which asks "
                f"for {expected}."
            )
    for name in ("do_resize", "do_rescale", "do_normalize", "do_pad"):
        if not getattr(images, name):
            raise ValueError(
                f"hf: {name} is false in preprocessor_config.json of {source}; true is needed."
            )


def _read_json(path: Path, source: str) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"hf: {path.name} of {source} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"hf: {path.name} of {source} is not a JSON object.")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
