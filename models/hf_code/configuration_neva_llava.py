"""Configuration of a LLaVA with another projector, or with images at two scales."""

from collections.abc import Sequence
from typing import Any

from transformers import LlavaConfig

from .image_scales import SCALES, check_scales

# Patches that each projector type merges along each axis.
PROJECTORS = {
    "mlp2x_gelu": 1,
    "affine": 1,
    "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3,
}


class NevaLlavaConfig(LlavaConfig):
    """Configuration of ``NevaLlavaForConditionalGeneration``.

    Args:
        mm_projector_type: ``mlp2x_gelu`` (LLaVA's), ``affine`` (one linear layer),
            ``mlp_downsample_2x2_fix`` or ``mlp_downsample_3x3_fix`` (blocks of patches become one
            vector, as in NVILA-Lite).
        image_scales: ``(1.0,)``, or ``(1.0, 0.5)``: images of twice the vision tower's size, seen
            in quarters and as a whole.
        **kwargs: Passed to ``LlavaConfig``.

    Raises:
        ValueError: If the projector type or the scales are unknown.
    """

    model_type = "neva_llava"

    def __init__(
        self,
        mm_projector_type: str = "affine",
        image_scales: Sequence[float] = SCALES[0],
        **kwargs: Any,
    ) -> None:
        if mm_projector_type not in PROJECTORS:
            raise ValueError(
                f"mm_projector_type={mm_projector_type!r} is unknown: "
                f"allowed are {', '.join(PROJECTORS)}"
            )
        check_scales(image_scales)
        self.mm_projector_type = mm_projector_type
        self.image_scales = tuple(image_scales)
        super().__init__(**kwargs)
