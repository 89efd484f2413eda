"""Images to compare models with: no downloaded picture, the same pixels everywhere."""

from __future__ import annotations

import numpy as np
from PIL import Image


def gradient_image(width: int, height: int, seed: int) -> Image.Image:
    """Return an RGB image that gets brighter from left to right, with noise (pixel values)."""
    ramp = np.linspace(0, 200, width)[None, :, None]
    noise = np.random.default_rng(seed).integers(0, 56, (height, width, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8))
