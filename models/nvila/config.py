"""Configuration of the NVILA model on Megatron-Core: vision tower, projector, language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nemo.collections.llm import Qwen2Config
from nemo.collections.llm.fn.activation import openai_gelu
from transformers import Qwen2Config as HFQwen2Config
from transformers import SiglipVisionConfig

from models.family_config import FamilyConfig
from models.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.image_slots.config import PaddedVocabulary
from models.image_slots.steps import image_slot_data_step, image_slot_forward_step
from models.image_slots.tower import PreNormTowerConfig
from models.nvila.description import read_assets_config
from models.padding import VOCABULARY_MULTIPLE

if TYPE_CHECKING:
    from models.nvila.model import MCoreNvilaModel


@dataclass
class SiglipTowerConfig(PreNormTowerConfig):
    """SigLIP vision transformer; the defaults are so400m/14 at 448 px."""

    num_layers: int = 27
    hidden_size: int = 1152
    ffn_hidden_size: int = 4304
    num_attention_heads: int = 16
    image_size: int = 448
    drops_first_patch: bool = False
    """Whether the first patch is no feature: code for CLIP takes it for the class token."""

    layernorm_epsilon: float = 1e-6
    activation_func: Callable = openai_gelu


@dataclass
class NvilaLanguageConfig(PaddedVocabulary, Qwen2Config):
    """Qwen2.5; `vocab_size` None means: what the assets say."""

    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = VOCABULARY_MULTIPLE
    scatter_embedding_sequence_parallel: bool = False
    # Megatron-Core's fused loss rounds the gradient of the logits to bf16, also in fp32 training:
    # an error of 0.3 % in every gradient. The bf16 recipes switch it on.
    cross_entropy_loss_fusion: bool = False


@dataclass
class NvilaConfig(FamilyConfig):
    """The whole model. The fields of a TransformerConfig mirror the language model's."""

    mm_projector_type: str = "mlp_downsample_2x2_fix"
    forward_step_fn: Callable | None = image_slot_forward_step
    data_step_fn: Callable | None = image_slot_data_step

    FAMILY = "nvila"
    OWN_FIELDS = ("mm_projector_type",)
    SHAPE_FIELDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "language_transformer_config": (
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "share_embeddings_and_output_weights",
            "rotary_base",
            "layernorm_epsilon",
        ),
        "vision_transformer_config": (
            "num_layers",
            "num_carried_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "image_size",
            "image_scales",
            "patch_size",
        ),
    }

    @classmethod
    def describe(cls, assets: str) -> NvilaConfig:
        """Return the configuration that an assets folder describes."""
        return config_from_hf(read_assets_config(assets))

    def build(self, pre_process: bool, post_process: bool, vp_stage: int | None) -> MCoreNvilaModel:
        """Build this stage's part of the model."""
        from models.nvila.model import MCoreNvilaModel

        return MCoreNvilaModel(self, pre_process, post_process, vp_stage)


def language_config_from_hf(text: HFQwen2Config) -> NvilaLanguageConfig:
    """Translate a Hugging Face Qwen2 configuration.

    Raises:
        ValueError: it asks for something that this model does not have.
    """
    unsupported = {
        "rope_scaling": text.rope_scaling is not None,
        "use_sliding_window": text.use_sliding_window,
        "hidden_act": text.hidden_act != "silu",
    }
    for name, is_used in unsupported.items():
        if is_used:
            raise ValueError(
                f"{name}: {getattr(text, name)!r} of the language model is not supported; a plain "
                "Qwen2.5 (no rope scaling, no sliding window, silu) is."
            )
    heads = text.num_attention_heads
    return NvilaLanguageConfig(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        ffn_hidden_size=text.intermediate_size,
        num_attention_heads=heads,
        num_query_groups=text.num_key_value_heads,
        kv_channels=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        share_embeddings_and_output_weights=text.tie_word_embeddings,
        rotary_base=text.rope_theta,
        layernorm_epsilon=text.rms_norm_eps,
    )


def vision_config_from_hf(
    vision: SiglipVisionConfig, vision_feature_layer: int = -2
) -> SiglipTowerConfig:
    """Translate a Hugging Face SigLIP vision configuration.

    Raises:
        ValueError: an activation other than the tanh GELU, or a feature layer that counts from 0.
    """
    if vision.hidden_act != "gelu_pytorch_tanh":
        raise ValueError(
            f"hidden_act: {vision.hidden_act!r} is not supported in the vision tower; "
            "gelu_pytorch_tanh is."
        )
    if vision_feature_layer >= 0:
        raise ValueError(
            f"vision_feature_layer: {vision_feature_layer} must be negative (-1 is the last layer)."
        )
    return SiglipTowerConfig(
        num_layers=vision.num_hidden_layers,
        num_carried_layers=-vision_feature_layer - 1,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.intermediate_size,
        num_attention_heads=vision.num_attention_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        layernorm_epsilon=vision.layer_norm_eps,
    )


def config_from_hf(description: NVILALiteConfig) -> NvilaConfig:
    """Translate the configuration of an exported model."""
    return NvilaConfig(
        language_transformer_config=language_config_from_hf(description.text_config),
        vision_transformer_config=vision_config_from_hf(
            description.vision_config, description.vision_feature_layer
        ),
        mm_projector_type=description.mm_projector_type,
        image_token_id=description.image_token_id,
    )
