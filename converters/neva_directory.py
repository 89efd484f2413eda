"""The modelling code of exported LLaVAs with one of NeVA's other projectors."""

NEVA_CLASS = "NevaLlavaForConditionalGeneration"
NEVA_AUTO_MAP = {
    "AutoConfig": "configuration_neva_llava.NevaLlavaConfig",
    "AutoModel": f"modeling_neva_llava.{NEVA_CLASS}",
    "AutoModelForImageTextToText": f"modeling_neva_llava.{NEVA_CLASS}",
}
CODE_FILES = (
    "configuration_neva_llava.py",
    "modeling_neva_llava.py",
    "projector_nvila_lite.py",
)
