"""LLaVA on Megatron-Core: CLIP or SigLIP -> projector -> Llama or the like."""

from __future__ import annotations

import torch

from models.image_slots.model import ImageSlotModel
from models.llava.config import LlavaConfig
from models.llava.projector import build_projector
from models.llava.vision import ClipTower
from models.nvila.config import SiglipTowerConfig
from models.nvila.vision import SiglipTower
from models.training_module import TrainingModule


class MCoreLlavaModel(ImageSlotModel):
    """One pipeline stage's part of the model."""

    def build_vision(self, config: LlavaConfig) -> torch.nn.Module:
        """Build the tower that the configuration is of."""
        vision = config.vision_transformer_config
        return (SiglipTower if isinstance(vision, SiglipTowerConfig) else ClipTower)(vision)

    def build_projector(self, config: LlavaConfig) -> torch.nn.Module:
        """Build the projector."""
        return build_projector(config)


class LlavaModel(TrainingModule):
    """NeMo's wrapper around the Megatron-Core model."""
