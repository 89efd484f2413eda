"""Nemotron as the language model of a LLaVA: zero-centred layer norms, squared ReLU, half rope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nemo.collections.llm import GPTConfig
from nemo.collections.llm.fn.activation import squared_relu
from transformers import PretrainedConfig

from models.image_slots.config import PaddedVocabulary
from models.padding import VOCABULARY_MULTIPLE


@dataclass
class NemotronLanguageConfig(PaddedVocabulary, GPTConfig):
    """Nemotron; `vocab_size` None means: what the assets say. The defaults are Minitron-4B's."""

    num_layers: int = 32
    hidden_size: int = 3072
    ffn_hidden_size: int = 9216
    num_attention_heads: int = 24
    num_query_groups: int | None = 8
    kv_channels: int | None = 128
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = VOCABULARY_MULTIPLE
    position_embedding_type: str = "rope"
    rotary_percent: float = 0.5
    share_embeddings_and_output_weights: bool = False
    scatter_embedding_sequence_parallel: bool = False
    normalization: str = "LayerNorm"
    layernorm_zero_centered_gamma: bool = True
    layernorm_epsilon: float = 1e-5
    add_bias_linear: bool = False
    activation_func: Callable = squared_relu
    bias_activation_fusion: bool = False
    bias_dropout_fusion: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    cross_entropy_loss_fusion: bool = False


def nemotron_config_from_hf(text: PretrainedConfig) -> NemotronLanguageConfig:
    """Translate a Hugging Face Nemotron configuration.

    Raises:
        ValueError: it asks for something that this model does not have.
    """
    unsupported = {
        "hidden_act": text.hidden_act != "relu2",
        "attention_bias": text.attention_bias,
        "mlp_bias": text.mlp_bias,
        "rope_scaling": getattr(text, "rope_scaling", None) is not None,
    }
    for name, is_used in unsupported.items():
        if is_used:
            raise ValueError(
                f"{name}: {getattr(text, name)!r} of the language model is not supported; a plain "
                "Nemotron (relu2, no biases, no rope scaling) is."
            )
    return NemotronLanguageConfig(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        ffn_hidden_size=text.intermediate_size,
        num_attention_heads=text.num_attention_heads,
        num_query_groups=text.num_key_value_heads or text.num_attention_heads,
        kv_channels=text.head_dim,
        vocab_size=text.vocab_size,
        share_embeddings_and_output_weights=text.tie_word_embeddings,
        rotary_base=text.rope_theta,
        rotary_percent=text.partial_rotary_factor,
        layernorm_epsilon=text.norm_eps,
    )
