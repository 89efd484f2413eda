"""A LLaVA with another projector or two scales: transformers' class, and code for those."""

from __future__ import annotations

from pathlib import Path

from converters.hf_directory import check_directory_name, write_code
from converters.llava_family import LlavaFamily
from converters.neva_directory import CODE_FILES
from models.hf_code.configuration_neva_llava import NevaLlavaConfig
from models.hf_code.modeling_neva_llava import NevaLlavaForConditionalGeneration
from models.llava.description import read_assets_config
from models.remote_code import require_known_code


class NevaFamily(LlavaFamily):
    """The parts of LLaVA behind another projector, or seeing images at two scales."""

    name = "neva"
    model_type = NevaLlavaConfig.model_type
    runs_directory_code = True

    def hf_model(self, directory: Path) -> NevaLlavaForConditionalGeneration:
        """Our own modelling code."""
        config = read_assets_config(directory)
        assert isinstance(config, NevaLlavaConfig)
        return NevaLlavaForConditionalGeneration(config)

    def check_target(self, out: Path) -> None:
        """Refuse names that transformers cannot import code from."""
        check_directory_name(out)

    def write_code(self, folder: Path) -> None:
        """Copy the modelling code."""
        write_code(folder, CODE_FILES)

    def check_code(self, hf: Path) -> None:
        """Refuse code that is not a copy of ours."""
        require_known_code(hf)
