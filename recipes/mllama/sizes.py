"""The three sizes of MLlama, and how each maps to H100 nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from recipes.rows import LayoutRow

Size = Literal["nano", "11b", "90b"]


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """Architecture, by the numbers of the published config.json."""

    hidden_size: int
    num_layers: int
    """All layers of the language model, those with cross-attention included."""

    cross_attention_layers: tuple[int, ...]
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    rope_scaling: bool = True
    vision_hidden_size: int = 1280
    vision_num_layers: int = 32
    vision_num_global_layers: int = 8
    vision_num_attention_heads: int = 16
    vision_ffn_hidden_size: int = 5120
    tapped_layers: tuple[int, ...] = (3, 7, 15, 23, 30)
    image_size: int = 560


SIZES: dict[str, SizeRow] = {
    "nano": SizeRow(
        hidden_size=128,
        num_layers=4,
        cross_attention_layers=(1, 3),
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=352,
        vision_hidden_size=96,
        vision_num_layers=2,
        vision_num_global_layers=1,
        vision_num_attention_heads=4,
        vision_ffn_hidden_size=384,
        tapped_layers=(1,),
        image_size=56,
    ),
    "11b": SizeRow(
        hidden_size=4096,
        num_layers=40,
        cross_attention_layers=tuple(range(3, 40, 5)),
        num_attention_heads=32,
        num_query_groups=8,
        ffn_hidden_size=14336,
    ),
    "90b": SizeRow(
        hidden_size=8192,
        num_layers=100,
        cross_attention_layers=tuple(range(3, 100, 5)),
        num_attention_heads=64,
        num_query_groups=8,
        ffn_hidden_size=28672,
    ),
}

# 11b: the tutorial's. 90b: 88 billion parameters need 18 bytes each in all, so four nodes at least;
# every stage of the pipeline holds 25 layers, and the vision tokens travel with the text.
LAYOUTS: dict[str, LayoutRow] = {
    "nano": LayoutRow(
        micro_batch_size=8,
        precision="fp32",
        overlap_communication=False,
        async_checkpoint=False,
        num_workers=1,
    ),
    "11b": LayoutRow(tensor_parallel=2, micro_batch_size=1, num_workers=2),
    "90b": LayoutRow(
        tensor_parallel=8,
        pipeline_parallel=4,
        sequence_parallel=True,
        micro_batch_size=1,
        recompute=True,
        num_workers=2,
    ),
}

# Frozen weights have neither gradients nor optimizer state: one GPU holds 11b, one node 90b.
# NeMo's adapter checkpoints are written synchronously.
LORA_LAYOUTS: dict[str, LayoutRow] = {
    "nano": LAYOUTS["nano"],
    "11b": replace(LAYOUTS["11b"], tensor_parallel=1, async_checkpoint=False),
    "90b": replace(LAYOUTS["90b"], pipeline_parallel=1, async_checkpoint=False),
}

assert set(get_args(Size)) == SIZES.keys() == LAYOUTS.keys() == LORA_LAYOUTS.keys()
