"""MLlama (Llama 3.2 Vision) for import, export and verify: transformers' own classes, no code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchFeature, MllamaForConditionalGeneration, PretrainedConfig
from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask

from converters.family import Family, Prompt
from converters.gradient_image import gradient_image
from converters.lazy import LazyTensor
from converters.mllama import STYLES, mllama_table
from converters.mllama_assets import complete_assets
from converters.pixels import as_uint8
from converters.rows import ConversionError, Row
from models.mllama.description import read_assets_config

if TYPE_CHECKING:
    from models.family_config import FamilyConfig
    from models.training_module import TrainingModule

_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.(cross_attn\.)?")


class MllamaFamily(Family):
    """Llama 3.1 with cross-attention to a tiled vision encoder."""

    name = "mllama"
    model_type = "mllama"

    whole_modules = ("model.vision_model", "model.multi_modal_projector")

    def hf_layers(self, assets: Path) -> str:
        """Return where they are."""
        return "model.language_model.layers"

    @property
    def lightning_class(self) -> type[TrainingModule]:
        """The class that a checkpoint's context describes."""
        from models.mllama.model import MllamaModel

        return MllamaModel

    def describe(self, assets: Path) -> FamilyConfig:
        """Return NeMo's description of the model."""
        from models.mllama.config import MllamaConfig

        return MllamaConfig.describe(str(assets))

    def table(self, assets: Path) -> list[Row]:
        """Return the rows of MLlama."""
        return mllama_table(read_assets_config(assets))

    def table_names(self, hf: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return the tensors under their names on disk, whatever the style in the files.

        Raises:
            ConversionError: two styles, or other layers than config.json says.
        """
        renamed = STYLES.disk_names(tensors)
        text = read_assets_config(hf).text_config
        layers, cross = _layer_numbers(renamed)
        for name, said, found in (
            ("layers", set(range(text.num_hidden_layers)), layers),
            ("cross-attention in the layers", set(text.cross_attention_layers), cross),
        ):
            if said != found:
                raise ConversionError(
                    f"hf: config.json of {hf} says {name} {_spell(said)}, but the tensors have "
                    f"{_spell(found)}."
                )
        return renamed

    def hf_model(self, directory: Path) -> MllamaForConditionalGeneration:
        """The class of transformers."""
        return MllamaForConditionalGeneration(read_assets_config(directory))

    def hf_shapes(self, assets: Path) -> dict[str, tuple[int, ...]]:
        """All tensors by their names on disk."""
        with torch.device("meta"):
            model = self.hf_model(assets)
        return {
            name: tuple(tensor.shape)
            for name, tensor in STYLES.disk_names(model.state_dict()).items()
        }

    def memory_name(self, key: str) -> str:
        """Return the name in transformers' module tree."""
        return STYLES.module_name(key)

    def complete_assets(self, assets: Path, source: str) -> None:
        """Make what the published directories lack, and refuse what does not fit."""
        complete_assets(assets, source)

    def prompts(self, processor: Any, description: PretrainedConfig) -> dict[str, Prompt]:
        """One image, two images, an image of several tiles, text only."""
        size = description.vision_config.image_size
        tiles = description.vision_config.max_num_tiles
        small = gradient_image(size * 3 // 4, size // 2, seed=0)
        wide = gradient_image(size * tiles, size, seed=1)
        tall = gradient_image(size // 2, size * 2 if tiles > 1 else size, seed=2)

        def question(*parts: str, images: tuple = ()) -> Prompt:
            content = [{"type": "image"} if part == "" else _text(part) for part in parts]
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                date_string="26 Jul 2024",  # the template would print today's
            )
            return Prompt(text=text, images=images)

        return {
            "one_image": question("", "何が見えますか?", images=(small,)),
            "two_images": question("", "これと", "", "これは同じですか?", images=(small, tall)),
            "wide_image": question("", "左から順に読んでください。", images=(wide,)),
            "text_only": question("日本で一番高い山は何ですか?"),
        }

    def model_inputs(self, processor: Any, inputs: BatchFeature) -> dict[str, Tensor | None]:
        """Tokens, and of the images the real tiles as uint8 with their places."""
        tokens = inputs["input_ids"]
        length = tokens.shape[1]
        arguments: dict[str, Tensor | None] = {
            "tokens": tokens,
            "position_ids": torch.arange(length).unsqueeze(0),
        }
        if "pixel_values" not in inputs:
            return arguments
        is_real = inputs["aspect_ratio_mask"][0].bool()
        spans = get_cross_attention_token_mask(tokens[0].tolist(), processor.image_token_id)
        return arguments | {
            "tiles": as_uint8(processor.image_processor, inputs["pixel_values"][0][is_real]),
            "tiles_per_image": is_real.sum(dim=1),
            "aspect_ratio_ids": inputs["aspect_ratio_ids"][0],
            "images_per_sample": torch.tensor([len(is_real)]),
            # transformers writes -1 for the end of the text where there is one image.
            "image_spans": torch.tensor(
                [[start, length if end == -1 else end] for start, end in spans]
            ),
        }


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _layer_numbers(names: Iterable[str]) -> tuple[set[int], set[int]]:
    """Return the numbers of all text layers, and of those with cross-attention."""
    matches = [match for match in map(_LAYER.match, names) if match]
    return {int(match[1]) for match in matches}, {int(match[1]) for match in matches if match[2]}


def _spell(numbers: set[int]) -> str:
    ordered = sorted(numbers)
    if not ordered:
        return "none"
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))
