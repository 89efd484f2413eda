"""LLaVA-JP for import: the published directories become checkpoints of the family llava."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    SiglipImageProcessor,
)

from converters.asset_files import read_json
from converters.conv1d import linear_view
from converters.families import read_config
from converters.hf_weights import HfWeights
from converters.lazy import LazyTensor
from converters.llava import llava_drops
from converters.llava_assembly import return_ids_and_mask_only
from converters.llava_assets import write_processor
from converters.llava_family import LlavaFamily
from converters.llava_jp import MODEL_TYPE, llava_names, read_llava_jp_config
from converters.mapping import without_dropped
from models.conversation_templates import CONVERSATION_TEMPLATES
from models.llava.description import input_side
from models.llava.prompt import IMAGE_TOKEN

_BICUBIC = 3
_NO_TOKEN = -1


class LlavaJpFamily(LlavaFamily):
    """A published LLaVA-JP. Its assets become those of a Llava, so the rest is that family's."""

    name = "llava_jp"
    model_type = MODEL_TYPE
    read_as = ()

    def known_tensors(self, hf: Path, weights: HfWeights) -> dict[str, LazyTensor]:
        """Return the tensors under the names of the table, without what is dropped."""
        config = read_llava_jp_config(read_config(hf, "hf"), _NO_TOKEN)
        tensors: Mapping[str, LazyTensor] = linear_view(llava_names(weights.tensors))
        drops = llava_drops(config.text_config)
        return without_dropped(drops, tensors, f"hf: {hf}", weights.release)

    def complete_assets(self, assets: Path, source: str) -> None:
        """Replace configuration and tokenizer by those of a Llava, and add a processor.

        The template stays the published one, with the end token that training put before every
        image.
        """
        content = read_json(assets / "config.json", source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(assets)
        except (OSError, ValueError) as error:
            raise ValueError(f"hf: {source} has no tokenizer that transformers loads.") from error
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [IMAGE_TOKEN]}, replace_additional_special_tokens=False
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        tokenizer.padding_side = "left"
        return_ids_and_mask_only(tokenizer)
        if not tokenizer.chat_template:
            tokenizer.chat_template = CONVERSATION_TEMPLATES["llava_jp_published"].chat_template
        config = read_llava_jp_config(content, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        if len(tokenizer) > config.text_config.vocab_size:
            raise ValueError(
                f"hf: the vocabulary of {source} has {config.text_config.vocab_size} rows, none of "
                f"which is left for {IMAGE_TOKEN}; {len(tokenizer)} are needed."
            )
        write_processor(assets, config, tokenizer, _image_processor(config))
        (assets / "config.json").unlink()
        config.save_pretrained(assets)
        if not (assets / "generation_config.json").is_file():
            GenerationConfig(
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ).save_pretrained(assets)
        super().complete_assets(assets, source)


def _image_processor(config: LlavaConfig) -> CLIPImageProcessor | SiglipImageProcessor:
    """Return what makes of images what the published code makes of them: both sides resized."""
    side = {"height": input_side(config), "width": input_side(config)}
    if isinstance(config.vision_config, CLIPVisionConfig):
        # Given both sides, CLIP's processor does not keep the aspect ratio.
        return CLIPImageProcessor(size=side, do_center_crop=False, crop_size=side)
    return SiglipImageProcessor(size=side, resample=_BICUBIC)
