"""Configuration of LLaVA on Megatron-Core: CLIP or SigLIP, projector, Llama or the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nemo.collections.llm import LlamaConfig
from nemo.collections.llm.fn.activation import quick_gelu
from transformers import LlavaConfig as HFLlavaConfig
from transformers import PretrainedConfig

from models.family_config import ROPE_AND_PIXELS, FamilyConfig
from models.image_slots.config import PaddedVocabulary
from models.image_slots.steps import image_slot_data_step, image_slot_forward_step
from models.image_slots.tower import PreNormTowerConfig
from models.llava.description import (
    CLASS_TOKENS,
    LLAVA_PROJECTOR,
    QKV_BIAS,
    image_scales,
    projector_type,
    read_assets_config,
    slots_per_image,
)
from models.llava.gpt2 import Gpt2LanguageConfig, gpt2_config_from_hf
from models.llava.internvit import internvit_config_from_hf
from models.llava.nemotron import NemotronLanguageConfig, nemotron_config_from_hf
from models.nvila.config import SiglipTowerConfig
from models.nvila.config import vision_config_from_hf as siglip_config_from_hf
from models.padding import VOCABULARY_MULTIPLE

if TYPE_CHECKING:
    from models.llava.model import MCoreLlavaModel


@dataclass
class ClipTowerConfig(PreNormTowerConfig):
    """CLIP vision transformer; the defaults are ViT-L/14 at 336 px."""

    num_layers: int = 24
    hidden_size: int = 1024
    ffn_hidden_size: int = 4096
    num_attention_heads: int = 16
    keep_class_token: bool = False
    """Whether the class token is one of the features (`full` in config.json)."""

    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    layernorm_epsilon: float = 1e-5
    activation_func: Callable = quick_gelu


@dataclass
class HFClipTowerConfig(ClipTowerConfig):
    """The same, computed by transformers' module; checkpoints are the same too."""

    WHOLE_ON_EACH_RANK: ClassVar[bool] = True
    """Of a tensor-parallel group."""


@dataclass
class LlavaLanguageConfig(PaddedVocabulary, LlamaConfig):
    """Llama, Mistral or Qwen2; `vocab_size` None means: what the assets say."""

    rope_scaling: bool = False
    scale_factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_len: int = 8192
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = VOCABULARY_MULTIPLE
    scatter_embedding_sequence_parallel: bool = False
    # As for nvila: the fused loss rounds gradients to bf16, which the bf16 recipes accept.
    cross_entropy_loss_fusion: bool = False


@dataclass
class LlavaConfig(FamilyConfig):
    """The whole model. The fields of a TransformerConfig mirror the language model's."""

    mm_projector_type: str = LLAVA_PROJECTOR
    """`mlp2x_gelu`, `affine`, `mlp_downsample_2x2_fix` or `mlp_downsample_3x3_fix`."""

    projector_bias: bool = True
    """Of mlp2x_gelu; the others have one."""

    forward_step_fn: Callable | None = image_slot_forward_step
    data_step_fn: Callable | None = image_slot_data_step

    FAMILY = "llava"
    OWN_FIELDS = ("mm_projector_type",)
    ADOPTED_FIELDS = ROPE_AND_PIXELS
    SHAPE_FIELDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "language_transformer_config": (
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "add_qkv_bias",
            "share_embeddings_and_output_weights",
            "rotary_base",
            "layernorm_epsilon",
            "position_embedding_type",
            "rope_scaling",
            "max_positions",
        ),
        "vision_transformer_config": (
            "num_layers",
            "num_carried_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "image_size",
            "patch_size",
        ),
    }

    @classmethod
    def describe(cls, assets: str) -> LlavaConfig:
        """Return the configuration that an assets folder describes."""
        described = config_from_hf(read_assets_config(assets))
        described.take_pixel_statistics(assets)
        return described

    def adopt(self, described: LlavaConfig) -> None:
        """Take also which features of the tower are used, and what is carried beside them.

        Raises:
            ValueError: the recipe sees images at two scales, and the assets do not.
        """
        super().adopt(described)
        ours, theirs = self.vision_transformer_config, described.vision_transformer_config
        if len(ours.image_scales) > len(theirs.image_scales):
            raise ValueError(
                f"image_scales: {list(ours.image_scales)} of this recipe do not go with "
                f"{self.assets}, whose images have {list(theirs.image_scales)}; start from what "
                "was assembled with --image-scales 1.0,0.5, or take vision='siglip'."
            )
        for name in _TOWER_FLAGS:
            if hasattr(theirs, name):
                setattr(ours, name, getattr(theirs, name))

    def build(self, pre_process: bool, post_process: bool, vp_stage: int | None) -> MCoreLlavaModel:
        """Build this stage's part of the model."""
        from models.llava.model import MCoreLlavaModel

        return MCoreLlavaModel(self, pre_process, post_process, vp_stage)


_TOWER_FLAGS = (
    *("keep_class_token", "drops_first_patch", "carries_head", "has_final_norm"),
    "image_scales",
)
"""Of some towers, not of all."""

_OTHER_LANGUAGES: Mapping[str, Callable[[PretrainedConfig], Any]] = {
    "gpt2": gpt2_config_from_hf,
    "nemotron": nemotron_config_from_hf,
}
_ROPE_TYPES = ("default", "llama3")


def language_config_from_hf(
    text: PretrainedConfig,
) -> LlavaLanguageConfig | Gpt2LanguageConfig | NemotronLanguageConfig:
    """Translate a Hugging Face configuration of a Llama, Mistral, Qwen2, GPT-2 or Nemotron.

    Raises:
        ValueError: it asks for something that this model does not have.
    """
    for model_type, translate in _OTHER_LANGUAGES.items():
        if text.model_type == model_type:
            return translate(text)
    if text.model_type not in QKV_BIAS:
        raise ValueError(
            f"text_config: {text.model_type!r} is not supported in a LLaVA; "
            f"{', '.join([*QKV_BIAS, *_OTHER_LANGUAGES])} are."
        )
    scaling = getattr(text, "rope_scaling", None) or {"rope_type": "default"}
    unsupported = {
        "rope_scaling": scaling.get("rope_type", scaling.get("type")) not in _ROPE_TYPES,
        "hidden_act": text.hidden_act != "silu",
        "attention_bias": getattr(text, "attention_bias", False),
        "mlp_bias": getattr(text, "mlp_bias", False),
        "sliding_window": _has_sliding_window(text),
    }
    for name, is_used in unsupported.items():
        if is_used:
            raise ValueError(
                f"{name}: {getattr(text, name)!r} of the language model is not supported; a plain "
                f"{text.model_type} (no rope scaling but llama3, no sliding window, no other "
                "biases, silu) is."
            )
    heads = text.num_attention_heads
    return LlavaLanguageConfig(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        ffn_hidden_size=text.intermediate_size,
        num_attention_heads=heads,
        num_query_groups=text.num_key_value_heads,
        kv_channels=getattr(text, "head_dim", None) or text.hidden_size // heads,
        add_qkv_bias=QKV_BIAS[text.model_type],
        vocab_size=text.vocab_size,
        share_embeddings_and_output_weights=text.tie_word_embeddings,
        rotary_base=text.rope_theta,
        **_rope_fields(scaling),
        layernorm_epsilon=text.rms_norm_eps,
    )


def _rope_fields(scaling: Mapping[str, Any]) -> dict[str, Any]:
    if scaling.get("rope_type", scaling.get("type")) != "llama3":
        return {}
    return {
        "rope_scaling": True,
        "scale_factor": scaling["factor"],
        "low_freq_factor": scaling["low_freq_factor"],
        "high_freq_factor": scaling["high_freq_factor"],
        "old_context_len": scaling["original_max_position_embeddings"],
    }


def _has_sliding_window(text: PretrainedConfig) -> bool:
    if text.model_type == "qwen2":  # which names a size also where it uses none
        return text.use_sliding_window
    return getattr(text, "sliding_window", None) is not None


def vision_config_from_hf(
    vision: PretrainedConfig, vision_feature_layer: int = -2, select_strategy: str = "default"
) -> PreNormTowerConfig:
    """Translate a Hugging Face configuration of a CLIP, SigLIP or InternViT vision model.

    Args:
        vision: sizes.
        vision_feature_layer: whose output has the features; -1 is the last.
        select_strategy: "default" leaves the first feature out, "full" does not.

    Raises:
        ValueError: another tower or activation, or features that are not those of one layer
            counted from the last.
    """
    if not isinstance(vision_feature_layer, int) or vision_feature_layer >= 0:
        raise ValueError(
            f"vision_feature_layer: {vision_feature_layer} must be one negative number (-1 is the "
            "last layer)."
        )
    if vision.model_type == "siglip_vision_model":
        return _siglip_config(vision, vision_feature_layer, select_strategy)
    if vision.model_type == "internvl_vision":
        return internvit_config_from_hf(vision, vision_feature_layer, select_strategy)
    if vision.model_type != "clip_vision_model":
        raise ValueError(
            f"vision_config: {vision.model_type!r} is not supported in a LLaVA; "
            f"{', '.join(CLASS_TOKENS)} are."
        )
    if vision.hidden_act != "quick_gelu":
        raise ValueError(
            f"hidden_act: {vision.hidden_act!r} is not supported in the vision tower; "
            "quick_gelu is."
        )
    return ClipTowerConfig(
        num_layers=vision.num_hidden_layers,
        num_carried_layers=-vision_feature_layer - 1,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.intermediate_size,
        num_attention_heads=vision.num_attention_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        keep_class_token=select_strategy == "full",
        layernorm_epsilon=vision.layer_norm_eps,
    )


def _siglip_config(
    vision: PretrainedConfig, vision_feature_layer: int, select_strategy: str
) -> SiglipTowerConfig:
    config = siglip_config_from_hf(vision, vision_feature_layer)
    config.carries_head = getattr(vision, "vision_use_head", True)
    # SigLIP has no class token: what CLIP's strategy leaves out is a patch, as in LLaVA-JP.
    config.drops_first_patch = select_strategy == "default"
    return config


def config_from_hf(description: HFLlavaConfig) -> LlavaConfig:
    """Translate the configuration of a Hugging Face directory.

    Raises:
        ValueError: it asks for something that this model does not have.
    """
    if description.projector_hidden_act != "gelu":
        raise ValueError(
            f"projector_hidden_act: {description.projector_hidden_act!r} is not supported; gelu is."
        )
    config = LlavaConfig(
        language_transformer_config=language_config_from_hf(description.text_config),
        vision_transformer_config=vision_config_from_hf(
            description.vision_config,
            description.vision_feature_layer,
            description.vision_feature_select_strategy,
        ),
        mm_projector_type=projector_type(description),
        projector_bias=description.multimodal_projector_bias,
        image_token_id=description.image_token_index,
    )
    config.vision_transformer_config.image_scales = image_scales(description)
    slots_per_image(description)  # refuses what cannot be merged
    return config
