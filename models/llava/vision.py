"""CLIP as a Megatron-Core vision transformer."""

from __future__ import annotations

import copy

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock

from models.image_slots.carried import carried_name, carried_shapes
from models.llava.config import ClipTowerConfig
from models.vision_layer import vision_layer_spec


class ClipTower(MegatronModule):
    """Patches and a class token, learned positions, a norm, and the blocks to the selected layer.

    The blocks after it and the final norm have no influence on the features. They are held as
    buffers under their Hugging Face names, so that export gives them back bit for bit.

    Args:
        config: sizes; `num_layers - num_carried_layers` blocks run.
    """

    def __init__(self, config: ClipTowerConfig) -> None:
        super().__init__(config=config)
        width = config.hidden_size
        self.class_token = torch.nn.Parameter(torch.randn(width) * width**-0.5)
        self.conv1 = torch.nn.Conv2d(
            3, width, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embeddings = torch.nn.Embedding(config.grid**2 + 1, width)
        self.ln_pre = torch.nn.LayerNorm(width, eps=config.layernorm_epsilon)
        running = copy.copy(config)
        running.num_layers = config.num_layers - config.num_carried_layers
        # Whole on the first stage; where pipelines interleave, Megatron-Core wants that in numbers.
        self.decoder = TransformerBlock(
            config=running,
            spec=vision_layer_spec(),
            pre_process=True,
            post_process=False,
            vp_stage=0,
        )
        self.carried = torch.nn.Module()
        shapes = carried_shapes(
            range(running.num_layers, config.num_layers), width, config.ffn_hidden_size
        )
        for name, shape in shapes.items():
            self.carried.register_buffer(
                carried_name(name), torch.zeros(shape, dtype=config.params_dtype)
            )
        if config.params_dtype is not None:
            self.class_token.data = self.class_token.data.to(config.params_dtype)
            for part in (self.conv1, self.position_embeddings, self.ln_pre):
                part.to(config.params_dtype)

    def set_input_tensor(self, input_tensor: torch.Tensor) -> None:
        """Do nothing: the tower stands at the beginning of the pipeline."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            tiles: uint8[n, 3, H, W].

        Returns:
            float[n, grid * grid, width], row-major patches, in the dtype of the weights; the class
            token comes first where it is kept.
        """
        mean, std = (
            torch.tensor(values, device=tiles.device).view(3, 1, 1)
            for values in (self.config.pixel_mean, self.config.pixel_std)
        )
        pixels = (tiles.float() / 255.0 - mean) / std  # in fp32, as the image processor does it
        patches = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(len(tiles), 1, -1)
        hidden = torch.cat([class_token, patches], dim=1)  # [n, 1 + grid * grid, width]
        # Called, not read: the distributed optimizer waits for a parameter in its module's hook.
        places = torch.arange(hidden.shape[1], device=tiles.device)
        hidden = self.ln_pre(hidden + self.position_embeddings(places))
        hidden = self.decoder(hidden.transpose(0, 1).contiguous(), attention_mask=None)
        first = 0 if self.config.keep_class_token else 1
        return hidden[first:].transpose(0, 1).contiguous()
