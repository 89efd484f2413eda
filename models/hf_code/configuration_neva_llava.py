"""Configuration of a LLaVA with one of NeVA's other projectors."""

from typing import Any

from transformers import LlavaConfig

# Patches that each projector type merges along each axis.
PROJECTORS = {"affine": 1, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}


class NevaLlavaConfig(LlavaConfig):
    """Configuration of ``NevaLlavaForConditionalGeneration``.

    Args:
        mm_projector_type: ``affine`` (one linear layer), ``mlp_downsample_2x2_fix`` or
            ``mlp_downsample_3x3_fix`` (blocks of patches become one vector, as in NVILA-Lite).
        **kwargs: Passed to ``LlavaConfig``.

    Raises:
        ValueError: If the projector type is unknown.
    """

    model_type = "neva_llava"

    def __init__(self, mm_projector_type: str = "affine", **kwargs: Any) -> None:
        if mm_projector_type not in PROJECTORS:
            raise ValueError(
                f"mm_projector_type={mm_projector_type!r} is unknown: "
                f"allowed are {', '.join(PROJECTORS)}"
            )
        self.mm_projector_type = mm_projector_type
        super().__init__(**kwargs)
