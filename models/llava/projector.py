"""The projectors of LLaVA and NeVA, replicated over tensor-parallel ranks as that of NVILA is."""

from __future__ import annotations

import torch

from models.hf_code.modeling_neva_llava import make_projector
from models.llava.config import LlavaConfig
from models.llava.description import LLAVA_PROJECTOR


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


def build_projector(config: LlavaConfig) -> torch.nn.Module:
    """Build the projector in the dtype of the other parameters, with PyTorch's default weights."""
    language, vision = config.language_transformer_config, config.vision_transformer_config
    widths = (vision.hidden_size, language.hidden_size)
    projector: torch.nn.Module
    if config.mm_projector_type == LLAVA_PROJECTOR:
        projector = LlavaProjector(*widths, config.projector_bias)
    else:
        projector = make_projector(config.mm_projector_type, *widths)
    return projector.to(config.params_dtype)
