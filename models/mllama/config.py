"""Configuration of the MLlama model (Llama 3.2 Vision) on Megatron-Core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.collections.llm.gpt.model.llama import Llama31Config
from nemo.lightning import io
from transformers import MllamaConfig as HFMllamaConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig as HFMllamaTextConfig
from transformers.models.mllama.configuration_mllama import (
    MllamaVisionConfig as HFMllamaVisionConfig,
)

from models.family_config import ROPE_AND_PIXELS, FamilyConfig
from models.mllama.description import EXTRA_EMBEDDINGS, read_assets_config
from models.mllama.steps import mllama_data_step, mllama_forward_step
from models.padding import VOCABULARY_MULTIPLE, padded_size

if TYPE_CHECKING:
    from models.mllama.model import MCoreMllamaModel

_ALIGNMENT = 8
"""Tokens of a tile are padded to a multiple of this before the encoder, as published."""


@dataclass
class MllamaVisionConfig(TransformerConfig, io.IOMixin):
    """The two-part vision encoder; the defaults are those of Llama 3.2 Vision Instruct."""

    num_layers: int = 32
    num_global_layers: int = 8
    hidden_size: int = 1280
    ffn_hidden_size: int = 5120
    num_attention_heads: int = 16
    image_size: int = 560
    patch_size: int = 14
    max_num_tiles: int = 4
    num_aspect_ratios: int = 8
    tapped_layers: tuple[int, ...] = (3, 7, 15, 23, 30)
    """The inputs of these layers are joined to the output (a number equal to `num_layers` is the
    output of the last)."""

    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    normalization: str = "LayerNorm"
    layernorm_epsilon: float = 1e-5
    add_bias_linear: bool = True
    activation_func: Callable = torch.nn.functional.gelu
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    # Megatron-Core's fused bias + GELU is the tanh approximation; the published one is exact.
    bias_activation_fusion: bool = False
    bias_dropout_fusion: bool = False

    @property
    def tokens_per_tile(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def padded_tokens_per_tile(self) -> int:
        """`tokens_per_tile` as the encoder computes with it."""
        return -(-self.tokens_per_tile // _ALIGNMENT) * _ALIGNMENT

    @property
    def output_size(self) -> int:
        """Width of the output: the encoder's and every tapped layer's side by side."""
        return self.hidden_size * (1 + len(self.tapped_layers))


@dataclass
class MllamaLanguageConfig(Llama31Config):
    """Llama 3.1 with cross-attention layers; `vocab_size` None means: what the assets say.

    `num_layers` counts all layers, numbered as in Hugging Face; those in `cross_attention_layers`
    attend to the image instead of to the text.
    """

    num_layers: int = 40
    cross_attention_layers: tuple[int, ...] = (3, 8, 13, 18, 23, 28, 33, 38)
    hidden_size: int = 4096
    ffn_hidden_size: int = 14336
    num_attention_heads: int = 32
    rotary_base: float = 500_000.0
    rope_scaling: bool = True
    """The wavelength-dependent scaling of Llama 3.1 (`scale_factor` and the fields beside it)."""

    tokens_per_tile: int = 0
    """Vision tokens of a tile; the outer configuration sets it."""

    seq_length: int = 2048
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = VOCABULARY_MULTIPLE
    scatter_embedding_sequence_parallel: bool = False
    apply_rope_fusion: bool = False
    # As for nvila: the fused loss rounds gradients to bf16, which the bf16 recipes accept.
    cross_entropy_loss_fusion: bool = False
    # Two kinds of layer: each is saved under its own number.
    hetereogenous_dist_checkpoint: bool = True
    # The cross-attention layers normalise queries and keys per head. Every tensor-parallel rank
    # sees its own heads only, and Megatron-Core sums these gradients where this is set.
    qk_layernorm: bool = True

    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the output layer; padding takes no part in the loss."""
        assert self.vocab_size is not None
        return padded_size(
            self.vocab_size + EXTRA_EMBEDDINGS,
            self.make_vocab_size_divisible_by,
            self.tensor_model_parallel_size,
        )


@dataclass
class MllamaConfig(FamilyConfig):
    """The whole model. The fields of a TransformerConfig mirror the language model's."""

    forward_step_fn: Callable | None = mllama_forward_step
    data_step_fn: Callable | None = mllama_data_step

    FAMILY = "mllama"
    ADOPTED_FIELDS = ROPE_AND_PIXELS
    SHAPE_FIELDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "language_transformer_config": (
            "num_layers",
            "cross_attention_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "rotary_base",
            "rope_scaling",
            "layernorm_epsilon",
        ),
        "vision_transformer_config": (
            "num_layers",
            "num_global_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "image_size",
            "patch_size",
            "max_num_tiles",
            "num_aspect_ratios",
            "tapped_layers",
        ),
    }

    @classmethod
    def describe(cls, assets: str) -> MllamaConfig:
        """Return the configuration that an assets folder describes."""
        described = config_from_hf(read_assets_config(assets))
        described.take_pixel_statistics(assets)
        return described

    def build(
        self, pre_process: bool, post_process: bool, vp_stage: int | None
    ) -> MCoreMllamaModel:
        """Build this stage's part of the model."""
        from models.mllama.model import MCoreMllamaModel

        assert self.vision_transformer_config is not None
        self.language_transformer_config.tokens_per_tile = (
            self.vision_transformer_config.tokens_per_tile
        )
        return MCoreMllamaModel(self, pre_process, post_process, vp_stage)


def language_config_from_hf(text: HFMllamaTextConfig) -> MllamaLanguageConfig:
    """Translate a Hugging Face text configuration.

    Raises:
        ValueError: it asks for something that this model does not have.
    """
    scaling = text.rope_scaling or {"rope_type": "default"}
    kind = scaling.get("rope_type", scaling.get("type"))
    unsupported = {
        "rope_scaling": (kind not in ("default", "llama3"), kind, "'default' and 'llama3' are"),
        "hidden_act": (text.hidden_act != "silu", text.hidden_act, "'silu' is"),
        "tie_word_embeddings": (bool(text.tie_word_embeddings), True, "False is"),
        "dropout": (text.dropout != 0, text.dropout, "0 is"),
    }
    for name, (is_used, value, allowed) in unsupported.items():
        if is_used:
            raise ValueError(f"{name}: {value!r} of text_config is not supported; {allowed}.")
    config = MllamaLanguageConfig(
        num_layers=text.num_hidden_layers,
        cross_attention_layers=tuple(text.cross_attention_layers),
        hidden_size=text.hidden_size,
        ffn_hidden_size=text.intermediate_size,
        num_attention_heads=text.num_attention_heads,
        num_query_groups=text.num_key_value_heads,
        kv_channels=text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
        rotary_base=text.rope_theta,
        rope_scaling=kind == "llama3",
        layernorm_epsilon=text.rms_norm_eps,
    )
    if kind == "llama3":
        config.scale_factor = scaling["factor"]
        config.low_freq_factor = scaling["low_freq_factor"]
        config.high_freq_factor = scaling["high_freq_factor"]
        config.old_context_len = scaling["original_max_position_embeddings"]
    return config


def vision_config_from_hf(vision: HFMllamaVisionConfig) -> MllamaVisionConfig:
    """Translate a Hugging Face vision configuration.

    Raises:
        ValueError: it asks for something that this model does not have, or contradicts itself.
    """
    if vision.hidden_act != "gelu":
        raise ValueError(
            f"hidden_act: {vision.hidden_act!r} of vision_config is not supported; 'gelu' is."
        )
    if vision.num_channels != 3:
        raise ValueError(
            f"num_channels: {vision.num_channels} of vision_config is not supported; 3 is."
        )
    config = MllamaVisionConfig(
        num_layers=vision.num_hidden_layers,
        num_global_layers=vision.num_global_layers,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.intermediate_size,
        num_attention_heads=vision.attention_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        max_num_tiles=vision.max_num_tiles,
        num_aspect_ratios=len(vision.supported_aspect_ratios),
        tapped_layers=tuple(vision.intermediate_layers_indices),
        layernorm_epsilon=vision.norm_eps,
    )
    if config.output_size != vision.vision_output_dim:
        raise ValueError(
            f"vision_output_dim: {vision.vision_output_dim} of vision_config does not fit; "
            f"{len(config.tapped_layers)} tapped layers of width {config.hidden_size} and the "
            f"output make {config.output_size}."
        )
    return config


def config_from_hf(description: HFMllamaConfig) -> MllamaConfig:
    """Translate the configuration of a Hugging Face model."""
    return MllamaConfig(
        language_transformer_config=language_config_from_hf(description.text_config),
        vision_transformer_config=vision_config_from_hf(description.vision_config),
        image_token_id=description.image_token_index,
    )
