"""GPT-2 as the language model of a LLaVA: learned positions, layer norms, biases, GELU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from nemo.collections.llm import GPTConfig
from nemo.collections.llm.fn.activation import openai_gelu
from transformers import PretrainedConfig

from models.image_slots.config import PaddedVocabulary
from models.padding import VOCABULARY_MULTIPLE

_ACTIVATIONS = {
    "gelu": torch.nn.functional.gelu,  # exact
    "gelu_new": openai_gelu,  # by a hyperbolic tangent
    "gelu_pytorch_tanh": openai_gelu,
}


@dataclass
class Gpt2LanguageConfig(PaddedVocabulary, GPTConfig):
    """GPT-2; `vocab_size` None means: what the assets say. The defaults are llm-jp-1.3b's."""

    num_layers: int = 24
    hidden_size: int = 2048
    ffn_hidden_size: int = 8192
    num_attention_heads: int = 16
    max_positions: int | None = 2048
    """Rows of the table of positions."""

    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = VOCABULARY_MULTIPLE
    position_embedding_type: str = "learned_absolute"
    share_embeddings_and_output_weights: bool = True
    scatter_embedding_sequence_parallel: bool = False
    normalization: str = "LayerNorm"
    layernorm_epsilon: float = 1e-5
    add_bias_linear: bool = True
    add_qkv_bias: bool = True
    activation_func: Callable = torch.nn.functional.gelu
    bias_activation_fusion: bool = False
    bias_dropout_fusion: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    cross_entropy_loss_fusion: bool = False


def gpt2_config_from_hf(text: PretrainedConfig) -> Gpt2LanguageConfig:
    """Translate a Hugging Face GPT-2 configuration.

    Raises:
        ValueError: it asks for something that this model does not have.
    """
    if text.activation_function not in _ACTIVATIONS:
        raise ValueError(
            f"activation_function: {text.activation_function!r} of the language model is not "
            f"supported; {', '.join(_ACTIVATIONS)} are."
        )
    unsupported = {
        "scale_attn_weights": not text.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": text.scale_attn_by_inverse_layer_idx,
        "add_cross_attention": text.add_cross_attention,
    }
    for name, is_used in unsupported.items():
        if is_used:
            raise ValueError(
                f"{name}: {getattr(text, name)!r} of the language model is not supported; a plain "
                "GPT-2 is."
            )
    heads = text.n_head
    return Gpt2LanguageConfig(
        num_layers=text.n_layer,
        hidden_size=text.n_embd,
        ffn_hidden_size=text.n_inner or 4 * text.n_embd,
        num_attention_heads=heads,
        num_query_groups=heads,
        kv_channels=text.n_embd // heads,
        max_positions=text.n_positions,
        seq_length=text.n_positions,
        vocab_size=text.vocab_size,
        share_embeddings_and_output_weights=text.tie_word_embeddings,
        layernorm_epsilon=text.layer_norm_epsilon,
        activation_func=_ACTIVATIONS[text.activation_function],
    )
