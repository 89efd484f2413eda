"""The sizes of LLaVA-JP, its vision towers, and how they map to GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from models.image_slots.tower import PreNormTowerConfig
from models.llava.config import ClipTowerConfig
from models.nvila.config import SiglipTowerConfig
from recipes.rows import LayoutRow

Size = Literal["nano", "1b"]
Vision = Literal["clip", "siglip"]


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """Architecture of the language model: a GPT-2 by its Hugging Face numbers."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    ffn_hidden_size: int
    max_positions: int
    dropout: float = 0.1
    """Of embedding, attention and residual, while training."""


@dataclass(frozen=True, kw_only=True)
class VisionRow:
    """A vision tower."""

    config: type[PreNormTowerConfig]
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    ffn_hidden_size: int
    image_size: int


SIZES: dict[str, SizeRow] = {
    "nano": SizeRow(
        hidden_size=128,
        num_layers=2,
        num_attention_heads=4,
        ffn_hidden_size=512,
        max_positions=512,
        dropout=0.0,
    ),
    "1b": SizeRow(  # llm-jp-1.3b-v1.0
        hidden_size=2048,
        num_layers=24,
        num_attention_heads=16,
        ffn_hidden_size=8192,
        max_positions=2048,
    ),
}

_NANO_CLIP = VisionRow(
    config=ClipTowerConfig,
    hidden_size=96,
    num_layers=3,
    num_attention_heads=4,
    ffn_hidden_size=384,
    image_size=84,
)
_CLIP_L = VisionRow(  # openai/clip-vit-large-patch14-336
    config=ClipTowerConfig,
    hidden_size=1024,
    num_layers=24,
    num_attention_heads=16,
    ffn_hidden_size=4096,
    image_size=336,
)
_SIGLIP_SO400M = VisionRow(  # google/siglip-so400m-patch14-384
    config=SiglipTowerConfig,
    hidden_size=1152,
    num_layers=27,
    num_attention_heads=16,
    ffn_hidden_size=4304,
    image_size=384,
)
TOWERS: dict[tuple[str, str], VisionRow] = {
    ("nano", "clip"): _NANO_CLIP,
    ("nano", "siglip"): replace(_NANO_CLIP, config=SiglipTowerConfig),
    ("1b", "clip"): _CLIP_L,
    ("1b", "siglip"): _SIGLIP_SO400M,
}

# One GPU, as published; others only share the batch.
LAYOUTS: dict[str, LayoutRow] = {
    "nano": LayoutRow(
        micro_batch_size=8,
        precision="fp32",
        overlap_communication=False,
        async_checkpoint=False,
        num_workers=1,
    ),
    "1b": LayoutRow(micro_batch_size=1, recompute=True, async_checkpoint=False),
}

assert set(get_args(Size)) == SIZES.keys() == LAYOUTS.keys()
assert {(size, vision) for size in SIZES for vision in get_args(Vision)} == TOWERS.keys()
