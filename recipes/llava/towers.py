"""The vision towers that a LLaVA can have, and the projectors behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from models.hf_code.configuration_neva_llava import PROJECTORS as PROJECTOR_FACTORS
from models.hf_code.image_scales import SCALES
from models.image_slots.tower import PreNormTowerConfig
from models.llava.config import ClipTowerConfig, HFClipTowerConfig
from models.llava.internvit import InternVitTowerConfig
from models.nvila.config import SiglipTowerConfig

Vision = Literal["clip", "clip_hf", "siglip", "siglip_s2", "internvit"]
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

    image_scales: tuple[float, ...] = SCALES[0]


_TWO_SCALES = SCALES[1]
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
    "clip_hf": replace(_NANO, config=HFClipTowerConfig),
    "siglip": replace(_NANO, config=SiglipTowerConfig),
    "siglip_s2": replace(_NANO, config=SiglipTowerConfig, image_scales=_TWO_SCALES),
    "internvit": replace(_NANO, config=InternVitTowerConfig),
}
_CLIP = VisionRow(  # openai/clip-vit-large-patch14-336
    config=ClipTowerConfig,
    hidden_size=1024,
    num_layers=24,
    num_attention_heads=16,
    ffn_hidden_size=4096,
    image_size=336,
)
_SIGLIP = VisionRow(  # google/siglip-so400m-patch14-384
    config=SiglipTowerConfig,
    hidden_size=1152,
    num_layers=27,
    num_attention_heads=16,
    ffn_hidden_size=4304,
    image_size=384,
)
TOWERS: Mapping[str, VisionRow] = {
    "clip": _CLIP,
    "clip_hf": replace(_CLIP, config=HFClipTowerConfig),
    "siglip": _SIGLIP,
    "siglip_s2": replace(_SIGLIP, image_scales=_TWO_SCALES),
    "internvit": VisionRow(  # OpenGVLab/InternViT-300M-448px
        config=InternVitTowerConfig,
        hidden_size=1024,
        num_layers=24,
        num_attention_heads=16,
        ffn_hidden_size=4096,
        image_size=448,
    ),
}

assert set(PROJECTORS) == PROJECTOR_FACTORS.keys()
assert set(get_args(Vision)) == TOWERS.keys() == NANO_TOWERS.keys()
