"""CLIP as a Megatron-Core vision transformer."""

from __future__ import annotations

import torch

from models.image_slots.tower import PreNormTower
from models.llava.config import ClipTowerConfig


class ClipTower(PreNormTower):
    """A class token before the patches, learned positions, a norm, and the blocks.

    Args:
        config: sizes; `num_layers - num_carried_layers` blocks run.
    """

    def __init__(self, config: ClipTowerConfig) -> None:
        width = config.hidden_size
        positions = torch.nn.Embedding(config.grid**2 + 1, width)
        super().__init__(config, positions, patch_bias=False)
        self.class_token = torch.nn.Parameter(torch.randn(width) * width**-0.5)
        self.ln_pre = torch.nn.LayerNorm(width, eps=config.layernorm_epsilon)
        if config.params_dtype is not None:
            self.class_token.data = self.class_token.data.to(config.params_dtype)
            self.ln_pre.to(config.params_dtype)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode normalised images; the class token comes first where it is kept."""
        class_token = self.class_token.expand(len(pixels), 1, -1)
        hidden = torch.cat([class_token, self.patches(pixels)], dim=1)
        hidden = self.run_blocks(self.ln_pre(self.with_positions(hidden)))
        first = 0 if self.config.keep_class_token else 1
        return hidden[:, first:].contiguous()
