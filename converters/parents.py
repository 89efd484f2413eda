"""Reading the configurations of the models that another one is put together of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import InternVLVisionConfig, PretrainedConfig

from converters.families import read_config

_WHOLES = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
"""Models that have a vision model as a part, and its type."""

_INTERN_VIT = ("intern_vit_6b",)
"""What the original files of every InternViT call themselves."""


def read_parent_config(
    directory: str | Path, config_classes: Sequence[type[PretrainedConfig]], argument: str
) -> PretrainedConfig:
    """Read the configuration of a parent model, also where it is a part of a larger model's.

    Raises:
        ValueError: the directory holds a model of another type.
    """
    description = read_config(directory, argument)
    found = description.get("model_type")
    if found in _WHOLES and "vision_config" in description:
        # Published files leave out here what the whole model says.
        description = description["vision_config"] | {"model_type": _WHOLES[found]}
    if found in _INTERN_VIT:
        description = _intern_vit(description)
    for config_class in config_classes:
        if description.get("model_type") == config_class.model_type:
            return config_class.from_dict(description)
    raise ValueError(
        f"{argument}: {directory} holds a model of type {found!r}; "
        f"{' or '.join(one.model_type for one in config_classes)} is expected."
    )


def _intern_vit(description: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of an original InternViT in transformers' terms."""
    same = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("hidden_act", "norm_type", "layer_norm_eps", "image_size", "patch_size"),
    )
    return {name: description[name] for name in same if name in description} | {
        "model_type": InternVLVisionConfig.model_type,
        "attention_bias": description.get("qkv_bias", False),
        "use_qk_norm": description.get("qk_normalization", True),
        "use_mean_pooling": True,  # it has no norm behind its blocks
    }
