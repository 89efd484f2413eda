"""The projectors of LLaVA and NeVA, replicated over tensor-parallel ranks as that of NVILA is."""

from __future__ import annotations

import torch

from models.hf_code.modeling_neva_llava import make_projector
from models.llava.config import LlavaConfig


def build_projector(config: LlavaConfig) -> torch.nn.Module:
    """Build the projector in the dtype of the other parameters, with PyTorch's default weights."""
    language, vision = config.language_transformer_config, config.vision_transformer_config
    projector = make_projector(
        config.mm_projector_type,
        vision.feature_size,
        language.hidden_size,
        config.projector_bias,
    )
    return projector.to(config.params_dtype)
