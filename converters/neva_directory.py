"""Which LLaVAs transformers' own class cannot be, and the code that their exports carry."""

from collections.abc import Sequence
from typing import Any

from transformers import LlavaConfig

from models.hf_code.configuration_neva_llava import NevaLlavaConfig
from models.hf_code.image_scales import SCALES
from models.llava.description import LLAVA_PROJECTOR

_NEVA_CLASS = "NevaLlavaForConditionalGeneration"
_NEVA_AUTO_MAP = {
    "AutoConfig": "configuration_neva_llava.NevaLlavaConfig",
    "AutoModel": f"modeling_neva_llava.{_NEVA_CLASS}",
    "AutoModelForImageTextToText": f"modeling_neva_llava.{_NEVA_CLASS}",
}
CODE_FILES = (
    "configuration_neva_llava.py",
    "image_scales.py",
    "modeling_neva_llava.py",
    "projector_nvila_lite.py",
)


def llava_config(
    mm_projector_type: str, image_scales: Sequence[float], **fields: Any
) -> LlavaConfig:
    """Return the config.json of a LLaVA: transformers' own where its class can be the model.

    Args:
        mm_projector_type: between tower and language model.
        image_scales: at which sizes an image is seen.
        **fields: of a LlavaConfig.
    """
    if mm_projector_type == LLAVA_PROJECTOR and tuple(image_scales) == SCALES[0]:
        return LlavaConfig(architectures=["LlavaForConditionalGeneration"], **fields)
    config = NevaLlavaConfig(mm_projector_type, image_scales, architectures=[_NEVA_CLASS], **fields)
    config.auto_map = _NEVA_AUTO_MAP
    return config
