"""LLaVA on Megatron-Core: CLIP, SigLIP or InternViT -> projector -> Llama or the like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from models.image_slots.model import ImageSlotModel
from models.image_slots.tower import PreNormTowerConfig, VisionTower
from models.llava.config import ClipTowerConfig, HFClipTowerConfig, LlavaConfig
from models.llava.hf_clip import HFClipTower
from models.llava.internvit import InternVitTower, InternVitTowerConfig
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
        return _TOWERS[type(vision)](vision)

    def build_projector(self, config: LlavaConfig) -> torch.nn.Module:
        """Build the projector."""
        return build_projector(config)


_TOWERS: dict[type[PreNormTowerConfig], Callable[[Any], VisionTower]] = {
    ClipTowerConfig: ClipTower,
    HFClipTowerConfig: HFClipTower,
    SiglipTowerConfig: SiglipTower,
    InternVitTowerConfig: InternVitTower,
}


class LlavaModel(TrainingModule):
    """NeMo's wrapper around the Megatron-Core model."""
