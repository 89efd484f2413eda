"""A LLaVA with another projector, or with images at two scales; all else is transformers' class."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel

from .configuration_neva_llava import PROJECTORS, NevaLlavaConfig

# transformers copies what this file imports, and not what those import.
from .image_scales import at_two_scales
from .projector_nvila_lite import NVILALiteProjector


class AffineProjector(nn.Module):
    """One linear layer."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps [images, patches, vision_width] to [images, patches, text_width]."""
        return self.linear(features)


class MlpProjector(nn.Module):
    """Two linear layers with an exact GELU between, as in LLaVA."""

    def __init__(self, vision_width: int, text_width: int, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, text_width, bias=bias)
        self.linear_2 = nn.Linear(text_width, text_width, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps [images, patches, vision_width] to [images, patches, text_width]."""
        return self.linear_2(functional.gelu(self.linear_1(features)))


def make_projector(
    mm_projector_type: str, vision_width: int, text_width: int, bias: bool = True
) -> nn.Module:
    """Makes a projector with PyTorch's default weights.

    Args:
        mm_projector_type: One of ``PROJECTORS``.
        vision_width: Channels of a patch.
        text_width: Channels of the language model.
        bias: Of ``mlp2x_gelu``; the others have one.
    """
    if mm_projector_type == "mlp2x_gelu":
        return MlpProjector(vision_width, text_width, bias)
    factor = PROJECTORS[mm_projector_type]
    if factor == 1:
        return AffineProjector(vision_width, text_width)
    return NVILALiteProjector(vision_width, text_width, factor)


class _OwnInitialisation(LlavaPreTrainedModel):
    """What is not LLaVA's initialises itself."""

    def _init_weights(self, module: nn.Module) -> None:
        with torch.no_grad():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
            else:
                super()._init_weights(module)


class NevaLlavaModel(_OwnInitialisation, LlavaModel):
    """LLaVA without its output layer.

    Args:
        config: The configuration.
    """

    config_class = NevaLlavaConfig

    def __init__(self, config: NevaLlavaConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = make_projector(
            config.mm_projector_type,
            config.vision_config.hidden_size * len(config.image_scales),
            config.text_config.hidden_size,
            config.multimodal_projector_bias,
        )

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        """Returns the vectors of each image for the language model."""
        layer = self.config.vision_feature_layer
        if vision_feature_layer is not None:
            layer = vision_feature_layer
        strategy = vision_feature_select_strategy or self.config.vision_feature_select_strategy
        if len(self.config.image_scales) == 1:
            return super().get_image_features(pixel_values, layer, strategy, **kwargs)

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            outputs = self.vision_tower(pixels, output_hidden_states=True)
            return outputs.hidden_states[layer][:, int(strategy == "default") :]

        return list(self.multi_modal_projector(at_two_scales(encode, pixel_values)))


# The name has "llava" in it: by it transformers knows that stored names need its translation.
class NevaLlavaForConditionalGeneration(_OwnInitialisation, LlavaForConditionalGeneration):
    """LLaVA for text generation from text and images.

    Args:
        config: The configuration.
    """

    config_class = NevaLlavaConfig

    def __init__(self, config: NevaLlavaConfig) -> None:
        # Past the parent, which would make a model with its own projector.
        super(LlavaForConditionalGeneration, self).__init__(config)
        text = config.text_config
        self.model = NevaLlavaModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()
