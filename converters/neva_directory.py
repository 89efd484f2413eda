"""The modelling code of exported LLaVAs with one of NeVA's other projectors."""

import shutil
from pathlib import Path

from models import hf_code

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


def write_code(directory: Path) -> None:
    """Copies the model and configuration code into an exported directory."""
    source = Path(hf_code.__path__[0])
    for name in CODE_FILES:
        shutil.copyfile(source / name, directory / name)
