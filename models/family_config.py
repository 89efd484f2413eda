"""What the configurations of all families share: a vision part, a language part, and assets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.lightning import io

from models.assets import AssetsArtifact
from models.assets_config import read_pixel_statistics
from models.checkpoint_paths import find_assets

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
class FamilyConfig(TransformerConfig, io.IOMixin):
    """A whole model. The fields of a TransformerConfig mirror the language model's."""

    language_transformer_config: Any = None
    vision_transformer_config: Any = None
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

    forward_step_fn: Callable | None = None
    data_step_fn: Callable | None = None

    FAMILY: ClassVar[str]
    SHAPE_FIELDS: ClassVar[Mapping[str, tuple[str, ...]]]
    """Fields of each part (by its name here) that a checkpoint and a recipe must agree on."""

    OWN_FIELDS: ClassVar[tuple[str, ...]] = ()
    """Fields of the whole that a checkpoint and a recipe must agree on."""

    ADOPTED_FIELDS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Fields of each part that the assets decide, beside the vocabulary."""

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

    def take_pixel_statistics(self, assets: str) -> None:
        """Take mean and deviation of pixels from the image processor's file of the assets."""
        mean, std = read_pixel_statistics(assets)
        self.vision_transformer_config.pixel_mean = mean
        self.vision_transformer_config.pixel_std = std

    @classmethod
    def describe(cls, assets: str) -> FamilyConfig:
        """Return the configuration that an assets folder describes.

        Raises:
            ValueError: it belongs to another family.
        """
        raise NotImplementedError

    def build(self, pre_process: bool, post_process: bool, vp_stage: int | None) -> MegatronModule:
        """Build this stage's part of the model."""
        raise NotImplementedError

    def check_parallelism(self) -> None:
        """Refuse layouts that this model cannot be computed in.

        Raises:
            ValueError: context parallelism, or interleaved pipeline stages.
        """
        if self.context_parallel_size > 1:
            raise ValueError(
                f"context_parallel_size: {self.context_parallel_size} is not supported for "
                f"{self.FAMILY}; use 1 and, for long sequences, tensor and sequence parallelism."
            )
        if self.virtual_pipeline_model_parallel_size is not None:
            # Stages exchange the shapes of their micro-batches; Megatron-Core's interleaved
            # schedule was seen to wait for ever when they do.
            raise ValueError(
                "virtual_pipeline_model_parallel_size: "
                f"{self.virtual_pipeline_model_parallel_size} is not supported for {self.FAMILY}; "
                "use None."
            )

    def resolve_assets(self) -> None:
        """Take from the assets what only they know, and compare the shapes.

        Raises:
            ValueError: the assets belong to a model of another family or size.
        """
        if self.assets is None:
            return
        self.assets = str(find_assets(self.assets))
        self.__io__.assets = self.assets  # what a checkpoint's context is written from
        described = self.describe(self.assets)
        for name in self.OWN_FIELDS:
            ours, theirs = getattr(self, name), getattr(described, name)
            if ours != theirs:
                raise ValueError(
                    f"assets: {self.assets} describes a model with {name}={theirs}, but this "
                    f"recipe has {ours}; start from a checkpoint that has it too."
                )
        for part, names in self.SHAPE_FIELDS.items():
            for name in names:
                ours = getattr(getattr(self, part), name)
                theirs = getattr(getattr(described, part), name)
                if ours != theirs:
                    raise ValueError(
                        f"assets: {self.assets} describes a model with {name}={theirs} in its "
                        f"{part.split('_')[0]} part, but this recipe's size has {ours}; start from "
                        "a checkpoint of the same size."
                    )
        self.adopt(described)

    def adopt(self, described: Any) -> None:
        """Take what the assets decide: vocabulary size, image token and ADOPTED_FIELDS."""
        self.language_transformer_config.vocab_size = (
            described.language_transformer_config.vocab_size
        )
        self.image_token_id = described.image_token_id
        for part, names in self.ADOPTED_FIELDS.items():
            for name in names:
                setattr(getattr(self, part), name, getattr(getattr(described, part), name))

    def configure_model(self, tokenizer=None, vp_stage: int | None = None) -> MegatronModule:
        """Build this rank's part of the model.

        Args:
            tokenizer: ignored; token ids come from the assets.
            vp_stage: virtual pipeline stage.

        Raises:
            ValueError: an unsupported layout, or assets of another model.
        """
        self.check_parallelism()
        self.resolve_assets()
        self._share_settings()
        stage = {"ignore_virtual": False, "vp_stage": vp_stage}
        return self.build(
            pre_process=parallel_state.is_pipeline_first_stage(**stage),
            post_process=parallel_state.is_pipeline_last_stage(**stage),
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


ROPE_AND_PIXELS: Mapping[str, tuple[str, ...]] = {
    "language_transformer_config": (
        "scale_factor",
        "low_freq_factor",
        "high_freq_factor",
        "old_context_len",
    ),
    "vision_transformer_config": ("pixel_mean", "pixel_std"),
}
"""Constants of rope scaling and of pixels: ADOPTED_FIELDS of families that have both."""
