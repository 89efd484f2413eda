"""The sizes of LLaVA-JP, its vision towers, and how they map to GPUs."""

from __future__ import annotations

from typing import Literal, get_args

from models.llava.gpt2 import Gpt2LanguageConfig
from recipes.llava.sizes import LAYOUTS as LLAVA_LAYOUTS
from recipes.llava.sizes import LanguageRow
from recipes.llava.towers import NANO_TOWERS, TOWERS, VisionRow
from recipes.rows import LayoutRow

Size = Literal["nano", "1b"]
Vision = Literal["clip", "clip_hf", "siglip", "siglip_s2"]

SIZES: dict[str, LanguageRow] = {
    "nano": LanguageRow(
        config=Gpt2LanguageConfig,
        hidden_size=128,
        num_layers=2,
        num_attention_heads=4,
        num_query_groups=4,
        head_size=32,
        ffn_hidden_size=512,
        options={"max_positions": 512, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    ),
    "1b": LanguageRow(  # llm-jp-1.3b-v1.0
        config=Gpt2LanguageConfig,
        hidden_size=2048,
        num_layers=24,
        num_attention_heads=16,
        num_query_groups=16,
        head_size=128,
        ffn_hidden_size=8192,
        # Of embedding, attention and residual, while training.
        options={"max_positions": 2048, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    ),
}


def towers(size: str) -> dict[str, VisionRow]:
    """Return the vision towers of a size by their names."""
    rows = NANO_TOWERS if size == "nano" else TOWERS
    return {name: rows[name] for name in get_args(Vision)}


# One GPU, as published; others only share the batch.
LAYOUTS: dict[str, LayoutRow] = {
    "nano": LLAVA_LAYOUTS["nano"],
    "1b": LayoutRow(
        micro_batch_size=1, recompute=True, async_checkpoint=False, optimizer_state="bf16"
    ),
}

assert set(get_args(Size)) == SIZES.keys() == LAYOUTS.keys()
