"""LLaVA for import, export and verify: transformers' own classes, no code."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature, LlavaForConditionalGeneration, PretrainedConfig

from converters.asset_files import write_json
from converters.conv1d import conv1d_view, fused_projections, linear_view
from converters.family import Family, Prompt
from converters.file_writer import FileTask
from converters.gradient_image import gradient_image
from converters.hf_weights import plan_weights
from converters.lazy import LazyTensor
from converters.llava import STYLES, llava_drops, llava_table
from converters.llava_assets import complete_assets
from converters.llava_jp import llava_jp_config, llava_jp_names
from converters.pixels import as_uint8
from converters.rows import Dropped, Row
from models.llava.description import (
    LLAVA_PROJECTOR,
    input_side,
    projector_type,
    read_assets_config,
)

if TYPE_CHECKING:
    from models.family_config import FamilyConfig
    from models.training_module import TrainingModule


class LlavaFamily(Family):
    """Llama or the like behind a CLIP, SigLIP or InternViT; the projector has two layers."""

    name = "llava"
    model_type = "llava"
    layouts: ClassVar[tuple[str, ...]] = ("hf", "llava_jp")
    read_as: ClassVar[tuple[str, ...]] = ("llava_jp",)

    whole_modules = ("model.vision_tower", "model.multi_modal_projector")

    def adapter_parts(self, assets: Path, parts: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """GPT-2 has one layer for query, key and value; its adapters are not transposed."""
        return fused_projections(parts) if _is_gpt2(assets) else dict(parts)

    def has_transposed_layers(self, assets: Path) -> bool:
        """GPT-2's are."""
        return _is_gpt2(assets)

    def hf_layers(self, assets: Path) -> str:
        """Return where they are."""
        return f"model.language_model.{'h' if _is_gpt2(assets) else 'layers'}"

    @property
    def lightning_class(self) -> type[TrainingModule]:
        """The class that a checkpoint's context describes."""
        from models.llava.model import LlavaModel

        return LlavaModel

    def describe(self, assets: Path) -> FamilyConfig:
        """Return NeMo's description of the model."""
        from models.llava.config import LlavaConfig

        return LlavaConfig.describe(str(assets))

    def table(self, assets: Path) -> list[Row]:
        """Return the rows of LLaVA."""
        return llava_table(read_assets_config(assets))

    def drops(self, assets: Path) -> list[Dropped]:
        """Return what older files hold beyond the model."""
        return llava_drops(read_assets_config(assets).text_config)

    def table_names(self, hf: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return the tensors under their names on disk, whatever the style in the files."""
        named = STYLES.disk_names(tensors)
        return linear_view(named) if _is_gpt2(hf) else named

    def disk_tensors(
        self, assets: Path, tensors: Mapping[str, LazyTensor]
    ) -> dict[str, LazyTensor]:
        """Return the tensors as files hold them."""
        return conv1d_view(tensors) if _is_gpt2(assets) else dict(tensors)

    def hf_model(self, directory: Path) -> LlavaForConditionalGeneration:
        """The class of transformers."""
        return LlavaForConditionalGeneration(read_assets_config(directory))

    def hf_shapes(self, assets: Path) -> dict[str, tuple[int, ...]]:
        """All tensors by their names on disk, but a tied output layer."""
        with torch.device("meta"):
            model = self.hf_model(assets)
        drops = self.drops(assets)
        return {
            name: tuple(tensor.shape)
            for name, tensor in STYLES.disk_names(model.state_dict()).items()
            if not any(drop.is_about(name) for drop in drops)
        }

    def memory_name(self, key: str) -> str:
        """Return the name in transformers' module tree."""
        return STYLES.module_name(key)

    def complete_assets(self, assets: Path, source: str) -> None:
        """Make what the published directories lack, and refuse what does not fit."""
        complete_assets(assets, source)

    def plan_layout(
        self, layout: str, folder: Path, assets: Path, tensors: Mapping[str, LazyTensor]
    ) -> list[FileTask[None]]:
        """Write the small files of the published layout of LLaVA-JP.

        Raises:
            ValueError: the language model is no GPT-2, or the projector not LLaVA's.
        """
        assert layout == "llava_jp", layout
        config = read_assets_config(assets)
        if config.text_config.model_type != "gpt2":
            raise ValueError(
                f"layout: {layout!r} is for GPT-2, but the language model is a "
                f"{config.text_config.model_type}; use 'hf'."
            )
        if projector_type(config) != LLAVA_PROJECTOR:
            raise ValueError(
                f"layout: {layout!r} is for {LLAVA_PROJECTOR}, but the projector is a "
                f"{projector_type(config)}; use 'hf'."
            )
        for path in assets.iterdir():
            if path.is_file() and path.name not in ("config.json", "processor_config.json"):
                shutil.copyfile(path, folder / path.name)
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        write_json(folder / "config.json", llava_jp_config(config) | {"torch_dtype": dtype})
        return plan_weights(folder, llava_jp_names(tensors))

    def prompts(self, processor: Any, description: PretrainedConfig) -> dict[str, Prompt]:
        """One image, two images of other shapes, an image behind its question, text only."""
        size = input_side(description)
        wide, tall = (
            gradient_image(size * 2, size, seed=1),
            gradient_image(size, size * 3, seed=2),
        )
        return {
            "one_image": Prompt(
                text="USER: <image>\n何が見えますか? ASSISTANT:",
                images=(gradient_image(size, size, seed=0),),
            ),
            "two_images": Prompt(
                text="USER: <image>\nと<image>\nは同じですか? ASSISTANT:", images=(wide, tall)
            ),
            "image_last": Prompt(text="USER: これは何ですか?\n<image> ASSISTANT:", images=(tall,)),
            "text_only": Prompt(text="USER: 日本で一番高い山は何ですか? ASSISTANT:"),
        }

    def model_inputs(self, processor: Any, inputs: BatchFeature) -> dict[str, Tensor | None]:
        """Tokens and uint8 images."""
        tokens, pixels = inputs["input_ids"], inputs.get("pixel_values")
        if pixels is not None:
            pixels = as_uint8(processor.image_processor, pixels)
        return {
            "tokens": tokens,
            "position_ids": torch.arange(tokens.shape[1]).unsqueeze(0),
            "tiles": pixels,
        }


def _is_gpt2(directory: Path) -> bool:
    return read_assets_config(directory).text_config.model_type == "gpt2"
