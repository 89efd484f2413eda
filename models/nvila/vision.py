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

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode normalised images; without the first patch where the configuration drops it."""
        hidden = self.run_blocks(self.with_positions(self.patches(pixels)))
        return hidden[:, int(self.config.drops_first_patch) :].contiguous()
