"""NVILA for import, export and verify: flat `nvila_lite` directories with modelling code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchFeature, PretrainedConfig

from converters.family import Family, Prompt
from converters.file_writer import FileTask
from converters.gradient_image import gradient_image
from converters.hf_directory import check_directory_name, write_code
from converters.lazy import LazyTensor
from converters.nvila import nvila_drops, nvila_table
from converters.rows import Dropped, Row
from converters.vila_layout import plan_vila_layout
from models.hf_code.modeling_nvila_lite import NVILALiteForConditionalGeneration
from models.nvila.description import read_assets_config
from models.remote_code import require_known_code

if TYPE_CHECKING:
    from models.family_config import FamilyConfig
    from models.training_module import TrainingModule


class NvilaFamily(Family):
    """Qwen2 and SigLIP behind a pixel-shuffle projector."""

    name = "nvila"
    model_type = "nvila_lite"
    hint = " (a language model and a vision tower are put together with `assemble`)"
    layouts = ("hf", "vila")
    runs_directory_code = True

    whole_modules = ("vision_tower", "mm_projector")

    def hf_layers(self, assets: Path) -> str:
        """Return where they are."""
        return "llm.model.layers"

    @property
    def lightning_class(self) -> type[TrainingModule]:
        """The class that a checkpoint's context describes."""
        from models.nvila.model import NvilaModel

        return NvilaModel

    def describe(self, assets: Path) -> FamilyConfig:
        """Return NeMo's description of the model."""
        from models.nvila.config import NvilaConfig

        return NvilaConfig.describe(str(assets))

    def table(self, assets: Path) -> list[Row]:
        """Return the rows of NVILA."""
        return nvila_table(read_assets_config(assets))

    def drops(self, assets: Path) -> list[Dropped]:
        """Return a stored copy of a tied embedding."""
        return nvila_drops(read_assets_config(assets).text_config)

    def hf_model(self, directory: Path) -> NVILALiteForConditionalGeneration:
        """Our own modelling code."""
        return NVILALiteForConditionalGeneration(read_assets_config(directory))

    def hf_shapes(self, assets: Path) -> dict[str, tuple[int, ...]]:
        """All but a tied output layer."""
        with torch.device("meta"):
            model = self.hf_model(assets)
        tied = {drop.hf for drop in nvila_drops(model.config.text_config)}
        return {
            name: tuple(tensor.shape)
            for name, tensor in model.state_dict().items()
            if name not in tied
        }

    def check_target(self, out: Path) -> None:
        """Refuse names that transformers cannot import code from."""
        check_directory_name(out)

    def write_code(self, folder: Path) -> None:
        """Copy the modelling code."""
        write_code(folder)

    def plan_layout(
        self, layout: str, folder: Path, assets: Path, tensors: Mapping[str, LazyTensor]
    ) -> list[FileTask[None]]:
        """Plan the three folders of VILA."""
        assert layout == "vila", layout
        return plan_vila_layout(folder, assets, tensors)

    def check_code(self, hf: Path) -> None:
        """Refuse code that is not a copy of ours."""
        require_known_code(hf)

    def prompts(self, processor: Any, description: PretrainedConfig) -> dict[str, Prompt]:
        """One tile, many tiles, many images, text only."""
        size = description.tile_size
        return {
            "one_tile": Prompt(
                text="<image>\n何が見えますか?", images=(gradient_image(size, size, seed=0),)
            ),
            "many_tiles": Prompt(
                text="<image>\n左から順に読んでください。",
                images=(gradient_image(size * 3, size, seed=1),),
            ),
            "many_images": Prompt(
                text="<image>\nこれと<image>\nこれは同じですか?",
                images=(
                    gradient_image(size * 2, size, seed=2),
                    gradient_image(size, size * 2, seed=3),
                ),
            ),
            "text_only": Prompt(text="日本で一番高い山は何ですか?"),
        }

    def model_inputs(self, processor: Any, inputs: BatchFeature) -> dict[str, Tensor | None]:
        """Tokens and uint8 tiles."""
        tokens = inputs["input_ids"]
        pixels = inputs.get("pixel_values")
        if pixels is not None:
            pixels = ((pixels * 0.5 + 0.5) * 255.0).round().to(torch.uint8)
        return {
            "tokens": tokens,
            "position_ids": torch.arange(tokens.shape[1]).unsqueeze(0),
            "tiles": pixels,
        }
