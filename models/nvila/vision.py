"""SigLIP as a Megatron-Core vision transformer."""

from __future__ import annotations

import torch

from models.image_slots.tower import PreNormTower
from models.nvila.config import SiglipTowerConfig


class SiglipTower(PreNormTower):
    """Patches, learned positions and the blocks.

    Args:
        config: sizes; `num_layers - num_carried_layers` blocks run.
    """

    def __init__(self, config: SiglipTowerConfig) -> None:
        positions = torch.nn.Embedding(config.grid**2, config.hidden_size)
        super().__init__(config, positions, patch_bias=True)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encode tiles.

        Args:
            tiles: uint8[n, 3, H, W].

        Returns:
            float[n, grid * grid, width], row-major patches, in the dtype of the weights; without
            the first one where the configuration drops it.
        """
        hidden = self.run_blocks(self.with_positions(self.patches(tiles)))
        return hidden[:, int(self.config.drops_first_patch) :].contiguous()
