"""A LLaVA with one of NeVA's other projectors; all else is the class of transformers."""

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from .configuration_neva_llava import PROJECTORS, NevaLlavaConfig

# transformers copies what this file imports, and not what those import.
from .projector_nvila_lite import NVILALiteProjector


class AffineProjector(nn.Module):
    """One linear layer."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps [images, patches, vision_width] to [images, patches, text_width]."""
        return self.linear(features)


def make_projector(mm_projector_type: str, vision_width: int, text_width: int) -> nn.Module:
    """Makes a projector with PyTorch's default weights.

    Args:
        mm_projector_type: One of ``PROJECTORS``.
        vision_width: Channels of a patch.
        text_width: Channels of the language model.
    """
    factor = PROJECTORS[mm_projector_type]
    if factor == 1:
        return AffineProjector(vision_width, text_width)
    return NVILALiteProjector(vision_width, text_width, factor)


# The name has "llava" in it: by it transformers knows that stored names need its translation.
class NevaLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA for text generation from text and images.

    Args:
        config: The configuration.
    """

    config_class = NevaLlavaConfig

    def __init__(self, config: NevaLlavaConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.model.multi_modal_projector = make_projector(
            config.mm_projector_type, vision.hidden_size, text.hidden_size
        )

    def _init_weights(self, module: nn.Module) -> None:
        # What is not LLaVA's initialises itself.
        with torch.no_grad():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
            else:
                super()._init_weights(module)
