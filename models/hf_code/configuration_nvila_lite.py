"""Configuration of the NVILA-Lite architecture."""

from copy import deepcopy
from typing import Any

from transformers import PretrainedConfig, Qwen2Config, SiglipVisionConfig

from .prompt_nvila_lite import tokens_per_tile

# Patches that each projector type merges along each axis.
DOWNSAMPLE = {"mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}


class NVILALiteConfig(PretrainedConfig):
    """Configuration of ``NVILALiteForConditionalGeneration``.

    Args:
        text_config: Qwen2 configuration, or its dictionary. ``tie_word_embeddings`` is taken from
            here.
        vision_config: SigLIP configuration, or its dictionary; the pooling head is always left out.
        image_token_id: Id of ``<image>`` in the tokenizer; -1 means not set, and no model can be
            built.
        newline_token_id: Id of a single newline in the tokenizer; -1 means not set.
        mm_projector_type: ``mlp_downsample_2x2_fix`` or ``mlp_downsample_3x3_fix``.
        vision_feature_layer: Index into the hidden states of the vision tower, where 0 is the
            embeddings and k the output of block k.
        max_tiles: Largest number of tiles of one image, the thumbnail not counted.
        **kwargs: Passed to ``PretrainedConfig``.

    Raises:
        ValueError: If the projector type is unknown, or there is no such hidden state.
    """

    model_type = "nvila_lite"
    sub_configs = {"text_config": Qwen2Config, "vision_config": SiglipVisionConfig}
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        text_config: Qwen2Config | dict[str, Any] | None = None,
        vision_config: SiglipVisionConfig | dict[str, Any] | None = None,
        image_token_id: int = -1,
        newline_token_id: int = -1,
        mm_projector_type: str = "mlp_downsample_3x3_fix",
        vision_feature_layer: int = -2,
        max_tiles: int = 12,
        **kwargs: Any,
    ) -> None:
        self.text_config = _part(Qwen2Config, text_config)
        self.vision_config = _part(SiglipVisionConfig, vision_config)
        self.vision_config.vision_use_head = False
        if mm_projector_type not in DOWNSAMPLE:
            raise ValueError(
                f"mm_projector_type={mm_projector_type!r} is unknown: "
                f"allowed are {', '.join(DOWNSAMPLE)}"
            )
        states = self.vision_config.num_hidden_layers + 1
        if not -states <= vision_feature_layer < states:
            raise ValueError(
                f"vision_feature_layer={vision_feature_layer} does not exist: a vision tower of "
                f"{states - 1} layers has the hidden states {-states} to {states - 1}"
            )
        self.image_token_id = image_token_id
        self.newline_token_id = newline_token_id
        self.mm_projector_type = mm_projector_type
        self.vision_feature_layer = vision_feature_layer
        self.max_tiles = max_tiles
        kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        super().__init__(**kwargs)

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return int(self.vision_config.image_size)

    @property
    def downsample(self) -> int:
        """Patches that the projector merges along each axis."""
        return DOWNSAMPLE[self.mm_projector_type]

    @property
    def tokens_per_tile(self) -> int:
        """Vision features of one tile, the newline that closes it not counted."""
        return tokens_per_tile(self.tile_size, int(self.vision_config.patch_size), self.downsample)

    @property
    def vision_layers_used(self) -> int:
        """Number of vision blocks whose output contributes to the features."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else int(self.vision_config.num_hidden_layers) + 1 + layer


def _part(config_class: type, given: Any) -> Any:
    """Makes the configuration of a part from a configuration, a dictionary or nothing."""
    return deepcopy(given) if isinstance(given, config_class) else config_class(**(given or {}))
