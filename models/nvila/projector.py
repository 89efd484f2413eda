"""The projector: the very module of the exported Hugging Face model, replicated over TP ranks.

It is a few million parameters beside billions, and one module for both sides leaves nothing to
drift. Its input and output gradients are whole on every tensor-parallel rank, so the replicas stay
equal without a reduction of their own.
"""

from __future__ import annotations

import torch

from models.hf_code.configuration_nvila_lite import DOWNSAMPLE
from models.hf_code.projector_nvila_lite import NVILALiteProjector
from models.nvila.config import NvilaConfig


def build_projector(config: NvilaConfig) -> torch.nn.Module:
    """Build the projector in the dtype of the other parameters.

    The weights are PyTorch's defaults, the published initialisation.
    """
    language, vision = config.language_transformer_config, config.vision_transformer_config
    assert language is not None
    assert vision is not None
    projector = NVILALiteProjector(
        vision.hidden_size, language.hidden_size, DOWNSAMPLE[config.mm_projector_type]
    )
    return projector.to(config.params_dtype)
