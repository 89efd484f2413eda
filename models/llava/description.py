"""What config.json says of a LLaVA, read without NeMo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import LlavaConfig, PretrainedConfig

from models.assets_config import read_config

QKV_BIAS = {"llama": False, "mistral": False, "qwen2": True}
"""The language models, and whether their query, key and value have a bias."""


CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0, "internvl_vision": 1}
"""The vision towers, and how many features of an image they have beside its patches."""


def square_side(size: int | Sequence[int]) -> int:
    """Return the side of a square that a configuration gives as one number or as two.

    Raises:
        ValueError: it is none.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(f"vision_config: {list(sides)} is no square; only squares are supported.")
    return sides.pop()


def patches(vision: PretrainedConfig) -> int:
    """Return how many patches an image has."""
    return (square_side(vision.image_size) // square_side(vision.patch_size)) ** 2


def slots_per_image(config: LlavaConfig) -> int:
    """Return how many vectors an image has for the language model."""
    vision = config.vision_config
    # SigLIP has none: what "default" leaves out there is a patch.
    has_class_token = CLASS_TOKENS[vision.model_type]
    keeps_first = config.vision_feature_select_strategy == "full"
    return patches(vision) + has_class_token - (not keeps_first)


def read_assets_config(assets: str | Path) -> LlavaConfig:
    """Read config.json of an assets folder.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    return read_config(assets, LlavaConfig)
