"""The vision towers of image-slot models: what they have in common."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from nemo.lightning import io

from models.hf_code.image_scales import SCALES, at_two_scales, check_scales
from models.image_slots.carried import carried_name, carried_shapes
from models.vision_layer import vision_layer_spec

_EXTRA_STATE = "_extra_state"


@dataclass
class PreNormTowerConfig(TransformerConfig, io.IOMixin):
    """A vision transformer of pre-norm blocks.

    `num_layers` counts the blocks of the Hugging Face checkpoint, of which the last
    `num_carried_layers` do not run, since they never reach the features of the selected layer: they
    and the final norm are carried through.
    """

    num_carried_layers: int = 1
    carries_head: bool = False
    """Whether a pooling head is carried through too."""

    image_scales: tuple[float, ...] = SCALES[0]
    """Sizes at which an image is seen, as parts of its size: (1.0,) or (1.0, 0.5)."""

    image_size: int = 336
    """Side in pixels of what the blocks see."""

    patch_size: int = 14
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    add_bias_linear: bool = True
    add_qkv_bias: bool = True
    normalization: str = "LayerNorm"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    bias_activation_fusion: bool = False
    bias_dropout_fusion: bool = False

    def __post_init__(self) -> None:
        """Check the scales.

        Raises:
            ValueError: they are not supported.
        """
        super().__post_init__()
        self.image_scales = tuple(self.image_scales)
        check_scales(self.image_scales)

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size

    @property
    def input_size(self) -> int:
        """Side in pixels of an image that comes in; a larger one is seen in quarters too."""
        return self.image_size * len(self.image_scales)

    @property
    def feature_size(self) -> int:
        """Channels of a feature: those of all scales, one behind another."""
        return self.hidden_size * len(self.image_scales)


class VisionTower(MegatronModule, ABC):
    """Makes features of images; what has no influence on them is carried through.

    Args:
        config: sizes.
    """

    config: PreNormTowerConfig

    def __init__(self, config: PreNormTowerConfig) -> None:
        super().__init__(config=config)
        self.carried = torch.nn.Module()
        for name, shape in self.carried_shapes(config).items():
            self.carried.register_buffer(
                carried_name(name), torch.zeros(shape, dtype=config.params_dtype)
            )

    def carried_shapes(self, config: PreNormTowerConfig) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the tensors that do not take part."""
        running = config.num_layers - config.num_carried_layers
        return carried_shapes(
            range(running, config.num_layers),
            config.hidden_size,
            config.ffn_hidden_size,
            config.carries_head,
        )

    def set_input_tensor(self, input_tensor: torch.Tensor) -> None:
        """Do nothing: the tower stands at the beginning of the pipeline."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            tiles: uint8[n, 3, H, W].

        Returns:
            float[n, features of an image, channels], row-major patches, in the dtype of the
            weights.
        """
        pixels = self._normalised(tiles)
        if len(self.config.image_scales) == 1:
            return self.features(pixels)
        return at_two_scales(self.features, pixels)

    @abstractmethod
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode normalised images: float32[n, 3, H, W] -> float[n, features, width]."""

    def _normalised(self, tiles: torch.Tensor) -> torch.Tensor:
        mean, std = (
            torch.tensor(values, device=tiles.device).view(3, 1, 1)
            for values in (self.config.pixel_mean, self.config.pixel_std)
        )
        return (tiles.float() / 255.0 - mean) / std  # in fp32, as the image processor does it


class PreNormTower(VisionTower):
    """Patch embedding, learned positions and the blocks that reach the selected layer.

    The blocks after it, the final norm and a pooling head have no influence on the features. They
    are held as buffers under their Hugging Face names, so that export gives them back bit for bit.

    Args:
        config: sizes; `num_layers - num_carried_layers` blocks run.
        positions: learned ones; called with their numbers.
        patch_bias: whether the patch embedding has one.
    """

    layer: ClassVar[type[TransformerLayer]] = TransformerLayer

    def __init__(
        self, config: PreNormTowerConfig, positions: torch.nn.Module, patch_bias: bool
    ) -> None:
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size
        self.conv1 = torch.nn.Conv2d(3, width, patch, stride=patch, bias=patch_bias)
        self.position_embeddings = positions
        running = copy.copy(config)
        running.num_layers = config.num_layers - config.num_carried_layers
        # Whole on the first stage; where pipelines interleave, Megatron-Core wants that in numbers.
        self.decoder = TransformerBlock(
            config=running,
            spec=vision_layer_spec(self.layer),
            pre_process=True,
            post_process=False,
            vp_stage=0,
        )
        if config.params_dtype is not None:
            self.conv1.to(config.params_dtype)
            self.position_embeddings.to(config.params_dtype)

        self.register_load_state_dict_pre_hook(_keep_extra_states)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Return the tensors with their places, and no statistics of FP8.

        A tower has none, since it is never computed in FP8; without those empty ones its checkpoint
        fits every implementation of it.
        """
        entries = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        return {name: one for name, one in entries.items() if not name.endswith(_EXTRA_STATE)}

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed patches: float32[n, 3, H, W] -> float[n, grid * grid, width], row by row."""
        return self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)

    def with_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        """Add the positions to [n, positions, width]."""
        # Called, not read: the distributed optimizer waits for a parameter in its module's hook.
        places = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden + self.position_embeddings(places)

    def run_blocks(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the blocks: [n, positions, width] -> the same, in Megatron-Core's layout inside."""
        hidden = self.decoder(hidden.transpose(0, 1).contiguous(), attention_mask=None)
        return hidden.transpose(0, 1)


def _keep_extra_states(
    tower: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Give Transformer Engine's modules their own state where a checkpoint has none."""
    for name, state in tower.state_dict().items():
        if name.endswith(_EXTRA_STATE):
            state_dict.setdefault(f"{prefix}{name}", state)
