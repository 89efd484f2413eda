"""The native VILA layout of an NVILA model: one folder for each of its three parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer

from converters.file_writer import FileTask
from converters.hf_directory import make_image_processor
from converters.hf_weights import plan_weights
from converters.lazy import LazyTensor
from models.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.nvila.description import read_assets_config

_VILA_PARTS = {
    "llm": "llm.",
    "vision_tower": "vision_tower.",
    "mm_projector": "mm_projector.",
}
"""Folders of the native VILA layout and the prefix that is cut off in each."""


def plan_vila_layout(
    folder: Path, assets: Path, tensors: Mapping[str, LazyTensor]
) -> list[FileTask[None]]:
    """Write the configuration that puts the parts together.

    Args:
        folder: an existing folder.
        assets: configuration and tokenizer.
        tensors: of the whole model, by their flat names.

    Returns:
        What writes the parts' weights.
    """
    description = read_assets_config(assets)
    tasks: list[FileTask[None]] = []
    for part, prefix in _VILA_PARTS.items():
        (folder / part).mkdir()
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        tasks += plan_weights(folder / part, own)
    tokenizer = AutoTokenizer.from_pretrained(assets)
    tokenizer.save_pretrained(folder / "llm")
    shutil.copyfile(assets / "generation_config.json", folder / "llm" / "generation_config.json")
    text = description.text_config.to_dict() | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_max_length": 4096,
        "tokenizer_model_max_length": 4096,
        "tokenizer_padding_side": "right",
    }
    vision = description.vision_config.to_dict() | {"architectures": ["SiglipVisionModel"]}
    projector = {
        "architectures": ["MultimodalProjector"],
        "model_type": "v2l_projector",
        "mm_projector_type": description.mm_projector_type,
        "torch_dtype": str(tensors["mm_projector.layers.1.weight"].dtype).removeprefix("torch."),
    }
    for part, content in (("llm", text), ("vision_tower", vision), ("mm_projector", projector)):
        _write_json(folder / part / "config.json", content)
    make_image_processor(description).save_pretrained(folder / "vision_tower")
    _write_json(folder / "config.json", _vila_config(description, text, vision, projector))
    return tasks


def _vila_config(
    description: NVILALiteConfig, text: dict, vision: dict, projector: dict
) -> dict[str, object]:
    """Top-level config.json of the native layout (the keys that its loader reads)."""
    return {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "llm_cfg": text,
        "vision_tower_cfg": vision,
        "mm_projector_cfg": projector,
        "hidden_size": description.text_config.hidden_size,
        "mm_hidden_size": description.vision_config.hidden_size,
        "image_aspect_ratio": "dynamic",
        "mm_vision_select_layer": description.vision_feature_layer,
        "mm_vision_select_feature": "cls_patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "min_tiles": 1,
        "max_tiles": description.max_tiles,
        "model_dtype": f"torch.{projector['torch_dtype']}",
        "s2": False,
        "dynamic_s2": False,
        "chat_template": None,
        "image_encoder": json.dumps({"_target_": "llava.model.encoders.BasicImageEncoder"}),
        "video_encoder": json.dumps({"_target_": "llava.model.encoders.BasicVideoEncoder"}),
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
