"""The modelling code of exported LLaVAs that transformers' own class cannot be."""

NEVA_CLASS = "NevaLlavaForConditionalGeneration"
NEVA_AUTO_MAP = {
    "AutoConfig": "configuration_neva_llava.NevaLlavaConfig",
    "AutoModel": f"modeling_neva_llava.{NEVA_CLASS}",
    "AutoModelForImageTextToText": f"modeling_neva_llava.{NEVA_CLASS}",
}
CODE_FILES = (
    "configuration_neva_llava.py",
    "image_scales.py",
    "modeling_neva_llava.py",
    "projector_nvila_lite.py",
)
