"""NVILA on Megatron-Core: SigLIP -> compressor and projector -> Qwen2.5."""

from __future__ import annotations

import torch

from models.image_slots.model import ImageSlotModel
from models.nvila.config import NvilaConfig
from models.nvila.projector import build_projector
from models.nvila.vision import SiglipTower
from models.training_module import TrainingModule


class MCoreNvilaModel(ImageSlotModel):
    """One pipeline stage's part of the model."""

    def build_vision(self, config: NvilaConfig) -> torch.nn.Module:
        """Build SigLIP."""
        return SiglipTower(config.vision_transformer_config)

    def build_projector(self, config: NvilaConfig) -> torch.nn.Module:
        """Build the compressor and the projector."""
        return build_projector(config)


class NvilaModel(TrainingModule):
    """NeMo's wrapper around the Megatron-Core model."""
