"""The sizes of LLaVA-1.5, and how each maps to H100 nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from recipes.rows import LayoutRow

Size = Literal["nano", "7b", "13b"]


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """Architecture: Vicuna 1.5 and CLIP ViT-L/14-336 by their Hugging Face numbers."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    head_size: int
    ffn_hidden_size: int
    rotary_base: float = 1e4
    vision_hidden_size: int = 1024
    vision_num_layers: int = 24
    vision_num_attention_heads: int = 16
    vision_ffn_hidden_size: int = 4096
    image_size: int = 336


SIZES: dict[str, SizeRow] = {
    "nano": SizeRow(
        hidden_size=128,
        num_layers=2,
        num_attention_heads=4,
        num_query_groups=4,
        head_size=32,
        ffn_hidden_size=352,
        vision_hidden_size=96,
        vision_num_layers=3,
        vision_num_attention_heads=4,
        vision_ffn_hidden_size=384,
        image_size=84,
    ),
    "7b": SizeRow(
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_query_groups=32,
        head_size=128,
        ffn_hidden_size=11008,
    ),
    "13b": SizeRow(
        hidden_size=5120,
        num_layers=40,
        num_attention_heads=40,
        num_query_groups=40,
        head_size=128,
        ffn_hidden_size=13824,
    ),
}

# A parameter in training takes 18 bytes, of which the distributed optimizer spreads 12 over the
# data-parallel ranks; tensor parallelism inside the node makes room for weights and gradients.
LAYOUTS: dict[str, LayoutRow] = {
    "nano": LayoutRow(
        micro_batch_size=8,
        precision="fp32",
        overlap_communication=False,
        async_checkpoint=False,
        num_workers=1,
    ),
    "7b": LayoutRow(tensor_parallel=2, sequence_parallel=True, micro_batch_size=4),
    "13b": LayoutRow(tensor_parallel=4, sequence_parallel=True, micro_batch_size=4),
}

# Frozen weights have neither gradients nor optimizer state: every GPU holds the whole model.
# NeMo's adapter checkpoints are written synchronously.
LORA_LAYOUTS: dict[str, LayoutRow] = {
    "nano": LAYOUTS["nano"],
    "7b": LayoutRow(micro_batch_size=4, recompute=True, async_checkpoint=False),
    "13b": LayoutRow(micro_batch_size=2, recompute=True, async_checkpoint=False),
}

assert set(get_args(Size)) == SIZES.keys() == LAYOUTS.keys() == LORA_LAYOUTS.keys()
