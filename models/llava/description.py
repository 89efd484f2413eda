"""What config.json says of a LLaVA, read without NeMo."""

from __future__ import annotations

from pathlib import Path

from transformers import LlavaConfig

from models.assets_config import read_config

QKV_BIAS = {"llama": False, "mistral": False, "qwen2": True}
"""The language models, and whether their query, key and value have a bias."""


def slots_per_image(config: LlavaConfig) -> int:
    """Return how many vectors an image has for the language model."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    # SigLIP has none: what "default" leaves out there is a patch.
    has_class_token = vision.model_type == "clip_vision_model"
    keeps_first = config.vision_feature_select_strategy == "full"
    return patches + has_class_token - (not keeps_first)


def read_assets_config(assets: str | Path) -> LlavaConfig:
    """Read config.json of an assets folder.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    return read_config(assets, LlavaConfig)
