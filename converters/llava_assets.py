"""The small files of a LLaVA directory: what a server needs, made or refused at import.

Older directories lack what current processors want to know of the model (the patch size, and which
tokens of the vision tower are features); without it they put one slot into the prompt, or none.
What is there is copied as it is; export writes the same files again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, LlavaProcessor

from models.llava.description import read_assets_config

_REQUIRED = ("config.json", "tokenizer_config.json", "preprocessor_config.json")
_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


def complete_assets(assets: Path, source: str) -> None:
    """Write what the processor must know, and check that it fits the model.

    Args:
        assets: copies of the directory's small files.
        source: what the user gave, for messages.

    Raises:
        ValueError: a file is missing or damaged, or does not fit config.json.
    """
    missing = [name for name in _REQUIRED if not (assets / name).is_file()]
    if missing:
        raise ValueError(f"hf: {source} lacks {', '.join(missing)}; a server needs every one.")
    config = read_assets_config(assets)
    path = assets / "processor_config.json"
    found = _read(path, source) if path.is_file() else {}
    wanted: dict[str, Any] = {
        "processor_class": "LlavaProcessor",
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": _CLASS_TOKENS.get(config.vision_config.model_type, 0),
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
        path.write_text(
            json.dumps(completed, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
        )
    _check_processor(assets, source)


def _check_processor(assets: Path, source: str) -> None:
    """Compare what the processor makes of an image with what the model takes."""
    try:
        processor = AutoProcessor.from_pretrained(assets)
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"hf: transformers cannot load the tokenizer and processor of {source} ({reason})."
        ) from error
    if not isinstance(processor, LlavaProcessor):
        raise ValueError(
            f"hf: {source} has a {type(processor).__name__}; a LlavaProcessor is expected."
        )
    config, images = read_assets_config(assets), processor.image_processor
    side = config.vision_config.image_size
    crop = getattr(images, "crop_size", None) or images.size
    for name, value, expected, field in (
        ("crop_size", dict(crop), {"height": side, "width": side}, "image_size"),
        ("id of <image>", processor.image_token_id, config.image_token_index, "image_token_index"),
    ):
        if value != expected:
            raise ValueError(
                f"hf: {name} {value} of {source} does not fit {field} of config.json, which asks "
                f"for {expected}."
            )


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"hf: {path.name} of {source} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"hf: {path.name} of {source} is not a JSON object.")
    return content
