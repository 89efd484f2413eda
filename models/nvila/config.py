"""Configuration of the NVILA model on Megatron-Core: vision tower, projector, language model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.collections.llm import Qwen2Config
from nemo.collections.llm.fn.activation import openai_gelu
from nemo.lightning import io
from transformers import Qwen2Config as HFQwen2Config
from transformers import SiglipVisionConfig

from models.checkpoint_paths import find_assets
from models.nvila.assets import AssetsArtifact
from models.nvila.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.nvila.steps import nvila_data_step, nvila_forward_step

if TYPE_CHECKING:
    from models.nvila.model import MCoreNvilaModel

# What the strategy and the precision plug-in set on the outer config and what each part must share.
_SHARED_FIELDS = (
    "tensor_model_parallel_size",
    "params_dtype",
    "bf16",
    "fp16",
    "autocast_dtype",
    "enable_autocast",
    "perform_initialization",
    "use_cpu_initialization",
    "init_model_with_meta_device",
    "gradient_accumulation_fusion",
    "timers",
)
# ... and what only the language model shares: the vision side lives whole on the first stage.
_LANGUAGE_FIELDS = (
    "sequence_parallel",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "pipeline_dtype",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "tp_comm_overlap",
    "cpu_offloading",
    "fp8",
    "fp8_recipe",
    "fp8_margin",
    "fp8_amax_history_len",
    "fp8_amax_compute_algo",
    "fp8_wgrad",
    "fp8_dot_product_attention",
    "fp8_multi_head_attention",
    "fp8_param",
    "first_last_layers_bf16",
    "num_layers_at_start_in_bf16",
    "num_layers_at_end_in_bf16",
)


@dataclass
class SiglipTowerConfig(TransformerConfig, io.IOMixin):
    """SigLIP vision transformer; the defaults are so400m/14 at 448 px.

    `num_layers` counts the blocks of the Hugging Face checkpoint; `num_used_layers` of them run.
    The rest, and the final norm, never reach the features of layer -2: they are carried through.
    """

    num_layers: int = 27
    num_carried_layers: int = 1
    hidden_size: int = 1152
    ffn_hidden_size: int = 4304
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    add_bias_linear: bool = True
    add_qkv_bias: bool = True
    normalization: str = "LayerNorm"
    layernorm_epsilon: float = 1e-6
    activation_func: Callable = openai_gelu
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    bias_activation_fusion: bool = False
    bias_dropout_fusion: bool = False

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size


@dataclass
class NvilaLanguageConfig(Qwen2Config):
    """Qwen2.5; `vocab_size` None means: what the assets say."""

    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = 128
    scatter_embedding_sequence_parallel: bool = False
    # Megatron-Core's fused loss rounds the gradient of the logits to bf16, also in fp32 training:
    # an error of 0.3 % in every gradient. The bf16 recipes switch it on.
    cross_entropy_loss_fusion: bool = False

    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: the vocabulary padded to one size for every TP degree.

        A multiple of 128 divides by every TP that fits a node, so a checkpoint keeps its shape when
        the degree changes. The padding rows take no part in the loss (models/nvila/language.py).
        """
        assert self.vocab_size is not None
        multiple = self.make_vocab_size_divisible_by
        if multiple % self.tensor_model_parallel_size:
            multiple *= self.tensor_model_parallel_size
        return -(-self.vocab_size // multiple) * multiple


@dataclass
class NvilaConfig(TransformerConfig, io.IOMixin):
    """The whole model. The fields of a TransformerConfig mirror the language model's."""

    language_transformer_config: NvilaLanguageConfig | None = None
    vision_transformer_config: SiglipTowerConfig | None = None
    mm_projector_type: str = "mlp_downsample_2x2_fix"
    assets: str | None = None
    """A folder with config.json and tokenizer, or a checkpoint or run that has one.

    Read when the model is built, not before.
    """

    image_token_id: int | None = None
    freeze_language_model: bool = False
    freeze_vision_model: bool = False
    freeze_vision_projection: bool = False

    num_layers: int = 1
    num_attention_heads: int = 1
    seq_length: int = 4096
    share_embeddings_and_output_weights: bool = False
    # The loss is the mean over the supervised tokens of the global batch.
    calculate_per_token_loss: bool = True
    # Micro-batches are as long as their longest sample; pipeline stages exchange the shapes.
    variable_seq_lengths: bool = True

    forward_step_fn: Callable = nvila_forward_step
    data_step_fn: Callable = nvila_data_step

    __io_artifacts__ = [AssetsArtifact("assets", required=False)]  # noqa: RUF012

    def __post_init__(self) -> None:
        """Mirror the language model, whose sizes Megatron-Core reads from the outer config.

        NeMo's strategy calls this again after it has set the parallel degrees here, so those (the
        fields of ModelParallelConfig) are left as they are.
        """
        language = self.language_transformer_config
        if language is not None:
            own = {field.name for field in dataclasses.fields(ModelParallelConfig)}
            own.add("calculate_per_token_loss")
            for field in dataclasses.fields(TransformerConfig):
                if field.name not in own:
                    setattr(self, field.name, getattr(language, field.name))
            self.seq_length = language.seq_length
            self.share_embeddings_and_output_weights = bool(
                language.share_embeddings_and_output_weights
            )

    def resolve_assets(self) -> None:
        """Take the vocabulary size and the image token from the assets, and compare the shapes.

        Raises:
            ValueError: the assets belong to a model of another family or size.
        """
        if self.assets is None:
            return
        self.assets = str(find_assets(self.assets))
        self.__io__.assets = self.assets  # what a checkpoint's context is written from
        described = config_from_hf(read_assets_config(self.assets))
        for part in ("language_transformer_config", "vision_transformer_config"):
            ours, theirs = getattr(self, part), getattr(described, part)
            for name in _SHAPE_FIELDS[part]:
                if getattr(ours, name) != getattr(theirs, name):
                    raise ValueError(
                        f"assets: {self.assets} describes a model with "
                        f"{name}={getattr(theirs, name)} in its {part.split('_')[0]} part, but "
                        f"this recipe's size has {getattr(ours, name)}; start from a checkpoint of "
                        "the same size."
                    )
        if described.mm_projector_type != self.mm_projector_type:
            raise ValueError(
                f"assets: {self.assets} has the projector {described.mm_projector_type}, "
                f"but this recipe's size has {self.mm_projector_type}."
            )
        assert self.language_transformer_config is not None
        assert described.language_transformer_config is not None
        self.language_transformer_config.vocab_size = (
            described.language_transformer_config.vocab_size
        )
        self.image_token_id = described.image_token_id

    def configure_model(self, tokenizer=None, vp_stage: int | None = None) -> MCoreNvilaModel:
        """Build this rank's part of the model.

        Args:
            tokenizer: ignored; token ids come from the assets.
            vp_stage: virtual pipeline stage.

        Raises:
            ValueError: context parallelism, or assets of another model.
        """
        from models.nvila.model import MCoreNvilaModel

        if self.context_parallel_size > 1:
            raise ValueError(
                f"context_parallel_size: {self.context_parallel_size} is not supported for nvila; "
                "use 1 and, for long sequences, tensor and sequence parallelism."
            )
        self.resolve_assets()
        self._share_settings()
        return MCoreNvilaModel(
            self,
            pre_process=parallel_state.is_pipeline_first_stage(
                ignore_virtual=False, vp_stage=vp_stage
            ),
            post_process=parallel_state.is_pipeline_last_stage(
                ignore_virtual=False, vp_stage=vp_stage
            ),
            vp_stage=vp_stage,
        )

    def _share_settings(self) -> None:
        language, vision = self.language_transformer_config, self.vision_transformer_config
        assert language is not None
        assert vision is not None
        for name in _SHARED_FIELDS:
            setattr(language, name, getattr(self, name))
            setattr(vision, name, getattr(self, name))
        for name in _LANGUAGE_FIELDS:
            setattr(language, name, getattr(self, name))
        language.variable_seq_lengths = self.variable_seq_lengths
        language.calculate_per_token_loss = self.calculate_per_token_loss


_SHAPE_FIELDS = {
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
        "patch_size",
    ),
}


def read_assets_config(assets: str | Path) -> NVILALiteConfig:
    """Read config.json of an assets folder.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    path = Path(assets) / "config.json"
    if not path.is_file():
        raise ValueError(f"assets: {path} does not exist; give a checkpoint made by this project.")
    description = json.loads(path.read_text(encoding="utf-8"))
    if description.get("model_type") != NVILALiteConfig.model_type:
        raise ValueError(
            f"assets: {path} describes a model of type {description.get('model_type')!r}; "
            f"{NVILALiteConfig.model_type} is expected."
        )
    return NVILALiteConfig.from_dict(description)


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
