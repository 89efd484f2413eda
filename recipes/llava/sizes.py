"""The language models that a LLaVA can have, and how each maps to H100 nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from models.llava.config import LlavaLanguageConfig
from models.llava.gpt2 import Gpt2LanguageConfig
from models.llava.nemotron import NemotronLanguageConfig
from recipes.rows import LayoutRow

Size = Literal[
    "nano",
    "nano_qwen2",
    "nano_nemotron",
    "nano_gpt2",
    "7b",
    "13b",
    "llama3_8b",
    "llama3_1_8b",
    "mistral_7b",
    "qwen2_5_7b",
    "nemotron_4b",
]


@dataclass(frozen=True, kw_only=True)
class LanguageRow:
    """A language model by its Hugging Face numbers."""

    config: type = LlavaLanguageConfig
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    head_size: int
    ffn_hidden_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the configuration."""


_NANO = LanguageRow(
    hidden_size=128,
    num_layers=2,
    num_attention_heads=4,
    num_query_groups=4,
    head_size=32,
    ffn_hidden_size=352,
    options={"rotary_base": 1e4},
)
_LLAMA_3 = LanguageRow(  # meta-llama/Meta-Llama-3-8B-Instruct
    hidden_size=4096,
    num_layers=32,
    num_attention_heads=32,
    num_query_groups=8,
    head_size=128,
    ffn_hidden_size=14336,
    options={"rotary_base": 5e5},
)
SIZES: dict[str, LanguageRow] = {
    "nano": _NANO,
    "nano_qwen2": replace(
        _NANO, num_query_groups=2, options={"rotary_base": 1e4, "add_qkv_bias": True}
    ),
    "nano_nemotron": replace(
        _NANO,
        config=NemotronLanguageConfig,
        options={"rotary_base": 1e4, "layernorm_epsilon": 1e-5},
    ),
    "nano_gpt2": replace(
        _NANO,
        config=Gpt2LanguageConfig,
        ffn_hidden_size=512,
        options={"max_positions": 512},
    ),
    "7b": LanguageRow(  # lmsys/vicuna-7b-v1.5
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_query_groups=32,
        head_size=128,
        ffn_hidden_size=11008,
        options={"rotary_base": 1e4},
    ),
    "13b": LanguageRow(  # lmsys/vicuna-13b-v1.5
        hidden_size=5120,
        num_layers=40,
        num_attention_heads=40,
        num_query_groups=40,
        head_size=128,
        ffn_hidden_size=13824,
        options={"rotary_base": 1e4},
    ),
    "llama3_8b": _LLAMA_3,
    "llama3_1_8b": replace(  # meta-llama/Llama-3.1-8B-Instruct
        _LLAMA_3, options={"rotary_base": 5e5, "rope_scaling": True}
    ),
    "mistral_7b": replace(  # mistralai/Mistral-7B-Instruct-v0.2 and v0.3
        _LLAMA_3, options={"rotary_base": 1e6}
    ),
    "qwen2_5_7b": LanguageRow(  # Qwen/Qwen2.5-7B-Instruct
        hidden_size=3584,
        num_layers=28,
        num_attention_heads=28,
        num_query_groups=4,
        head_size=128,
        ffn_hidden_size=18944,
        options={"rotary_base": 1e6, "add_qkv_bias": True, "layernorm_epsilon": 1e-6},
    ),
    "nemotron_4b": LanguageRow(  # nvidia/Minitron-4B-Base
        config=NemotronLanguageConfig,
        hidden_size=3072,
        num_layers=32,
        num_attention_heads=24,
        num_query_groups=8,
        head_size=128,
        ffn_hidden_size=9216,
        options={"rotary_base": 1e4},
    ),
}


def is_nano(size: str) -> bool:
    """Return whether a size is for one CPU."""
    return size.startswith("nano")


# A parameter in training takes 18 bytes, of which the distributed optimizer spreads 12 over the
# data-parallel ranks; tensor parallelism inside the node makes room for weights and gradients.
_NANO_LAYOUT = LayoutRow(
    micro_batch_size=8,
    precision="fp32",
    overlap_communication=False,
    async_checkpoint=False,
    num_workers=1,
)
_7B_LAYOUT = LayoutRow(tensor_parallel=2, sequence_parallel=True, micro_batch_size=4)
LAYOUTS: dict[str, LayoutRow] = {
    size: _NANO_LAYOUT if is_nano(size) else _7B_LAYOUT for size in SIZES
} | {"13b": replace(_7B_LAYOUT, tensor_parallel=4)}

# Frozen weights have neither gradients nor optimizer state: every GPU holds the whole model.
# NeMo's adapter checkpoints are written synchronously.
_7B_LORA_LAYOUT = LayoutRow(micro_batch_size=4, recompute=True, async_checkpoint=False)
LORA_LAYOUTS: dict[str, LayoutRow] = {
    size: _NANO_LAYOUT if is_nano(size) else _7B_LORA_LAYOUT for size in SIZES
} | {"13b": replace(_7B_LORA_LAYOUT, micro_batch_size=2)}

assert set(get_args(Size)) == SIZES.keys()
