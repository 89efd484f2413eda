"""The five sizes of NVILA, and how each maps to H100 nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from recipes.rows import LayoutRow

Size = Literal["nano", "1b", "2b", "15b", "33b"]

TWO_BY_TWO, THREE_BY_THREE = "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """Architecture: Qwen2.5 and SigLIP by their Hugging Face numbers."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    head_size: int
    ffn_hidden_size: int
    tied_embeddings: bool
    mm_projector_type: str
    rotary_base: float = 1e6
    vision_hidden_size: int = 1152
    vision_num_layers: int = 27
    vision_num_attention_heads: int = 16
    vision_ffn_hidden_size: int = 4304
    image_size: int = 448


SIZES: dict[str, SizeRow] = {
    "nano": SizeRow(
        hidden_size=128,
        num_layers=2,
        num_attention_heads=4,
        num_query_groups=2,
        head_size=32,
        ffn_hidden_size=352,
        tied_embeddings=True,
        mm_projector_type=TWO_BY_TWO,
        rotary_base=1e4,
        vision_hidden_size=96,
        vision_num_layers=3,
        vision_num_attention_heads=4,
        vision_ffn_hidden_size=384,
        image_size=56,
    ),
    "1b": SizeRow(
        hidden_size=896,
        num_layers=24,
        num_attention_heads=14,
        num_query_groups=2,
        head_size=64,
        ffn_hidden_size=4864,
        tied_embeddings=True,
        mm_projector_type=TWO_BY_TWO,
    ),
    "2b": SizeRow(
        hidden_size=1536,
        num_layers=28,
        num_attention_heads=12,
        num_query_groups=2,
        head_size=128,
        ffn_hidden_size=8960,
        tied_embeddings=True,
        mm_projector_type=TWO_BY_TWO,
    ),
    "15b": SizeRow(
        hidden_size=5120,
        num_layers=48,
        num_attention_heads=40,
        num_query_groups=8,
        head_size=128,
        ffn_hidden_size=13824,
        tied_embeddings=False,
        mm_projector_type=THREE_BY_THREE,
    ),
    # The projector of the published 33B is not documented; ours follows the 15B.
    "33b": SizeRow(
        hidden_size=5120,
        num_layers=64,
        num_attention_heads=40,
        num_query_groups=8,
        head_size=128,
        ffn_hidden_size=27648,
        tied_embeddings=False,
        mm_projector_type=THREE_BY_THREE,
    ),
}

# Qwen2.5 0.5B and 1.5B have two key-value heads: tensor parallelism stops at 2, and they need none.
# 15B and 33B spread the fp32 optimizer state over all data-parallel ranks; tensor parallelism
# inside the node makes room for weights, gradients and activations in 80 GB.
LAYOUTS: dict[str, LayoutRow] = {
    "nano": LayoutRow(
        micro_batch_size=8,
        precision="fp32",
        overlap_communication=False,
        async_checkpoint=False,
        num_workers=1,
    ),
    "1b": LayoutRow(micro_batch_size=2),
    "2b": LayoutRow(micro_batch_size=2),
    "15b": LayoutRow(tensor_parallel=4, sequence_parallel=True, micro_batch_size=2, recompute=True),
    "33b": LayoutRow(tensor_parallel=8, sequence_parallel=True, micro_batch_size=1, recompute=True),
}

# Frozen weights have neither gradients nor optimizer state: less tensor parallelism is needed.
# NeMo's adapter checkpoints are written synchronously.
LORA_LAYOUTS: dict[str, LayoutRow] = {
    "nano": LAYOUTS["nano"],
    "1b": replace(LAYOUTS["1b"], async_checkpoint=False),
    "2b": replace(LAYOUTS["2b"], async_checkpoint=False),
    "15b": replace(LAYOUTS["15b"], tensor_parallel=2, async_checkpoint=False),
    "33b": replace(LAYOUTS["33b"], tensor_parallel=4, async_checkpoint=False),
}

assert set(get_args(Size)) == SIZES.keys() == LAYOUTS.keys() == LORA_LAYOUTS.keys()
