"""What config.json says of a LLaVA, read without NeMo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from transformers import LlavaConfig, PretrainedConfig

from models.assets_config import read_config, read_model_type
from models.hf_code.configuration_neva_llava import PROJECTORS, NevaLlavaConfig
from models.hf_code.image_scales import SCALES, grid_of

QKV_BIAS = {"llama": False, "mistral": False, "qwen2": True}
"""The language models, and whether their query, key and value have a bias."""


LLAVA_PROJECTOR = "mlp2x_gelu"
"""The projector that transformers' own class has."""


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


def image_scales(config: LlavaConfig) -> tuple[float, ...]:
    """Return at which sizes an image is seen, as parts of its size."""
    return config.image_scales if isinstance(config, NevaLlavaConfig) else SCALES[0]


def input_side(config: LlavaConfig) -> int:
    """Return the side in pixels of an image as the tower takes it, with two scales the double."""
    return square_side(config.vision_config.image_size) * len(image_scales(config))


def feature_width(config: LlavaConfig) -> int:
    """Return the channels of a feature as the projector takes it: those of all scales."""
    return config.vision_config.hidden_size * len(image_scales(config))


def slots_per_image(config: LlavaConfig) -> int:
    """Return how many vectors an image has for the language model.

    Raises:
        ValueError: the features make no grid, which projector or scales need.
    """
    vision = config.vision_config
    # SigLIP has none: what "default" leaves out there is a patch.
    has_class_token = CLASS_TOKENS[vision.model_type]
    keeps_first = config.vision_feature_select_strategy == "full"
    features = patches(vision) + has_class_token - (not keeps_first)
    if len(image_scales(config)) > 1:
        _check_grid(features, config.vision_feature_select_strategy)
    factor = PROJECTORS[projector_type(config)]
    if factor == 1:
        return features
    if features != patches(vision):
        raise ValueError(
            f"vision_feature_select_strategy: {config.vision_feature_select_strategy!r} leaves "
            f"{features} of {patches(vision)} patches, which "
            f"{projector_type(config)} cannot merge; all patches and nothing else are needed."
        )
    side = square_side(vision.image_size) // square_side(vision.patch_size)
    return (-(-side // factor)) ** 2


def _check_grid(features: int, strategy: str) -> None:
    try:
        grid_of(features)
    except ValueError as error:
        raise ValueError(
            f"vision_feature_select_strategy: {strategy!r} leaves {features} features of an image, "
            "which are no grid, as two image scales need; without a class token they are."
        ) from error


def projector_type(config: LlavaConfig) -> str:
    """Return what stands between tower and language model."""
    return config.mm_projector_type if isinstance(config, NevaLlavaConfig) else LLAVA_PROJECTOR


def processor_patch_size(config: LlavaConfig) -> int:
    """Return the patch size with which LlavaProcessor counts as many positions as an image has.

    It divides the side of an image by this, and takes the square. Where patches are merged, it has
    to take them for larger ones.

    Raises:
        ValueError: there is none.
    """
    vision, slots = config.vision_config, slots_per_image(config)
    if PROJECTORS[projector_type(config)] == 1:
        return square_side(vision.patch_size) * len(image_scales(config))
    side, merged = input_side(config), math.isqrt(slots)
    size = side // merged
    if side // size != merged:
        raise ValueError(
            f"mm_projector_type: {projector_type(config)!r} makes {slots} vectors of an image of "
            f"{side} px, which transformers' processor cannot count; another image size can be."
        )
    return size


def read_assets_config(assets: str | Path) -> LlavaConfig:
    """Read config.json of an assets folder: of a LLaVA, or of one that needs code of ours.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    if read_model_type(assets) == NevaLlavaConfig.model_type:
        return read_config(assets, NevaLlavaConfig)
    return read_config(assets, LlavaConfig)
