"""SigLIP as a Megatron-Core vision transformer."""

from __future__ import annotations

import copy

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock

from models.image_slots.carried import carried_name, carried_shapes
from models.nvila.config import SiglipTowerConfig
from models.vision_layer import vision_layer_spec


class SiglipTower(MegatronModule):
    """Patch embedding, learned positions and the blocks that reach the selected layer.

    The blocks after it and the final norm have no influence on the features. They are held as
    buffers under their Hugging Face names, so that export gives them back bit for bit.

    Args:
        config: sizes; `num_layers - num_carried_layers` blocks run.
    """

    def __init__(self, config: SiglipTowerConfig) -> None:
        super().__init__(config=config)
        width = config.hidden_size
        self.conv1 = torch.nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.position_embeddings = torch.nn.Embedding(config.grid**2, width)
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
            self.conv1.to(config.params_dtype)
            self.position_embeddings.to(config.params_dtype)

    def set_input_tensor(self, input_tensor: torch.Tensor) -> None:
        """Do nothing: the tower stands at the beginning of the pipeline."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encode tiles.

        Args:
            tiles: uint8[n, 3, H, W].

        Returns:
            float[n, grid * grid, width], row-major patches, in the dtype of the weights.
        """
        # (x / 255 - mean) / std with mean = std = 0.5, in fp32 as the image processor does it.
        pixels = (tiles.float() / 255.0 - 0.5) / 0.5
        patches = self.conv1(pixels.to(self.conv1.weight.dtype))  # [n, width, grid, grid]
        hidden = patches.flatten(2).permute(2, 0, 1)  # [grid * grid, n, width]
        # Called, not read: the distributed optimizer waits for a parameter in its module's hook.
        places = torch.arange(patches.shape[2] * patches.shape[3], device=tiles.device)
        hidden = hidden + self.position_embeddings(places).unsqueeze(1)
        hidden = self.decoder(hidden.contiguous(), attention_mask=None)
        return hidden.transpose(0, 1).contiguous()
