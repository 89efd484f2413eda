"""The projector of LLaVA-1.5, replicated over tensor-parallel ranks as that of NVILA is."""

from __future__ import annotations

import torch

from models.llava.config import LlavaConfig


class LlavaProjector(torch.nn.Module):
    """Two linear layers with an exact GELU between.

    Args:
        vision_width: of the features.
        text_width: of the language model.
        bias: of both layers.
    """

    def __init__(self, vision_width: int, text_width: int, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = torch.nn.Linear(vision_width, text_width, bias=bias)
        self.linear_2 = torch.nn.Linear(text_width, text_width, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [n, patches, vision_width] to [n, patches, text_width]."""
        return self.linear_2(torch.nn.functional.gelu(self.linear_1(features)))


def build_projector(config: LlavaConfig) -> LlavaProjector:
    """Build the projector in the dtype of the other parameters, with PyTorch's default weights."""
    language, vision = config.language_transformer_config, config.vision_transformer_config
    projector = LlavaProjector(vision.hidden_size, language.hidden_size, config.projector_bias)
    return projector.to(config.params_dtype)
