"""The vision towers that a LLaVA can have, and the projectors behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from models.image_slots.tower import PreNormTowerConfig
from models.llava.config import ClipTowerConfig
from models.llava.internvit import InternVitTowerConfig
from models.nvila.config import SiglipTowerConfig

Vision = Literal["clip", "siglip", "internvit"]
Projector = Literal["mlp2x_gelu", "affine", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"]
PROJECTORS: tuple[str, ...] = get_args(Projector)


@dataclass(frozen=True, kw_only=True)
class VisionRow:
    """A vision tower by its Hugging Face numbers."""

    config: type[PreNormTowerConfig]
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    ffn_hidden_size: int
    image_size: int
    num_carried_layers: int = 1
    """Blocks behind the one whose output has the features."""


_NANO = VisionRow(
    config=ClipTowerConfig,
    hidden_size=96,
    num_layers=3,
    num_attention_heads=4,
    ffn_hidden_size=384,
    image_size=84,
)
NANO_TOWERS: Mapping[str, VisionRow] = {
    "clip": _NANO,
    "siglip": replace(_NANO, config=SiglipTowerConfig),
    "internvit": replace(_NANO, config=InternVitTowerConfig),
}
TOWERS: Mapping[str, VisionRow] = {
    "clip": VisionRow(  # openai/clip-vit-large-patch14-336
        config=ClipTowerConfig,
        hidden_size=1024,
        num_layers=24,
        num_attention_heads=16,
        ffn_hidden_size=4096,
        image_size=336,
    ),
    "siglip": VisionRow(  # google/siglip-so400m-patch14-384
        config=SiglipTowerConfig,
        hidden_size=1152,
        num_layers=27,
        num_attention_heads=16,
        ffn_hidden_size=4304,
        image_size=384,
    ),
    "internvit": VisionRow(  # OpenGVLab/InternViT-300M-448px
        config=InternVitTowerConfig,
        hidden_size=1024,
        num_layers=24,
        num_attention_heads=16,
        ffn_hidden_size=4096,
        image_size=448,
    ),
}

assert set(get_args(Vision)) == TOWERS.keys() == NANO_TOWERS.keys()
