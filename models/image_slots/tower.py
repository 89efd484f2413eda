"""The vision towers of image-slot models: what CLIP's and SigLIP's have in common."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from nemo.lightning import io

from models.image_slots.carried import carried_name, carried_shapes
from models.vision_layer import vision_layer_spec


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

    image_size: int = 336
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

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size


class PreNormTower(MegatronModule):
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
        super().__init__(config=config)
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
        self.carried = torch.nn.Module()
        for name, shape in self.carried_shapes(config).items():
            self.carried.register_buffer(
                carried_name(name), torch.zeros(shape, dtype=config.params_dtype)
            )
        if config.params_dtype is not None:
            self.conv1.to(config.params_dtype)
            self.position_embeddings.to(config.params_dtype)

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

    def patches(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embed patches: uint8[n, 3, H, W] -> float[n, grid * grid, width], row by row."""
        mean, std = (
            torch.tensor(values, device=tiles.device).view(3, 1, 1)
            for values in (self.config.pixel_mean, self.config.pixel_std)
        )
        pixels = (tiles.float() / 255.0 - mean) / std  # in fp32, as the image processor does it
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
