"""From what an image processor makes back to the pixels that it was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_uint8(image_processor: Any, pixels: Tensor) -> Tensor:
    """Undo rescaling and normalisation: float[n, 3, H, W] -> uint8[n, 3, H, W]."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    return ((pixels * std + mean) / image_processor.rescale_factor).round().to(torch.uint8)
