"""LLaVA of a Llama, Mistral, Qwen2, Nemotron or GPT-2, and a CLIP, SigLIP or InternViT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    GPT2Config,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaImageProcessor,
    MistralConfig,
    NemotronConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from converters.assembly import Assembly
from converters.conv1d import linear_view
from converters.internvit import transformers_names
from converters.lazy import LazyTensor
from converters.llava import WHOLE_CLIP, llava_drops, llava_table
from converters.llava_assets import write_processor
from converters.neva_directory import llava_config
from converters.nvila import WHOLE_SIGLIP
from converters.rows import Dropped, Row
from models.conversation_templates import CONVERSATION_TEMPLATES, conversation_template
from models.hf_code.image_scales import SCALES
from models.llava.description import (
    CLASS_TOKENS,
    LLAVA_PROJECTOR,
    input_side,
    slots_per_image,
)
from models.llava.prompt import IMAGE_TOKEN

PADDING_TOKEN = "<pad>"
_BICUBIC = 3


@dataclass(frozen=True, kw_only=True)
class LlavaAssembly(Assembly):
    """How a LLaVA is put together.

    Attributes:
        conversation_template: name of one that takes the place of the language model's own.
        image_aspect_ratio: "square" lets CLIP take the middle of an image; "pad" pads it to a
            square first, as LLaVA-1.5 was fine-tuned. SigLIP resizes whole images.
        projector_type: `mlp2x_gelu` as LLaVA has it, or one of NeVA's others: `affine`,
            `mlp_downsample_2x2_fix`, `mlp_downsample_3x3_fix`.
        image_scales: (1.0,), or (1.0, 0.5) for images of twice the tower's size, seen in quarters
            and as a whole, as LLaVA-JP v1.1 has them.
    """

    conversation_template: str | None = None
    image_aspect_ratio: str = "square"
    projector_type: str = LLAVA_PROJECTOR
    image_scales: tuple[float, ...] = SCALES[0]

    language_configs: ClassVar[Sequence[type[PretrainedConfig]]] = (
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        GPT2Config,
        NemotronConfig,
    )
    vision_configs: ClassVar[Sequence[type[PretrainedConfig]]] = (
        CLIPVisionConfig,
        SiglipVisionConfig,
        InternVLVisionConfig,
    )
    language_prefix: ClassVar[str] = "language_model."
    vision_prefix: ClassVar[str] = "vision_tower."
    projector_prefix: ClassVar[str] = "multi_modal_projector."
    vocabulary_tables: ClassVar[Sequence[str]] = (
        *Assembly.vocabulary_tables,
        "model.wte.weight",
    )

    def language_names(
        self, text: PretrainedConfig, tensors: Mapping[str, LazyTensor]
    ) -> dict[str, LazyTensor]:
        """Turn GPT-2's names and layers into those of the table."""
        if not isinstance(text, GPT2Config):
            return dict(tensors)
        prefix = self.language_prefix
        named = {}
        for name, tensor in tensors.items():
            own = name.removeprefix(prefix).removeprefix("transformer.")
            named[f"{prefix}{own}" if own.startswith("lm_head.") else f"{prefix}model.{own}"] = (
                tensor
            )
        return linear_view(named)

    def vision_names(
        self, vision: PretrainedConfig, tensors: Mapping[str, LazyTensor]
    ) -> dict[str, LazyTensor]:
        """Turn the names of an original InternViT into those of transformers."""
        if not isinstance(vision, InternVLVisionConfig):
            return dict(tensors)
        return transformers_names(tensors, self.vision_prefix)

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase, llm: str | Path) -> None:
        """Add <image>, and a padding token where there is none; set the template."""
        if self.conversation_template is not None:
            template = conversation_template(self.conversation_template, "conversation_template")
            tokenizer.chat_template = template.chat_template
        if not tokenizer.chat_template:
            raise ValueError(
                f"llm: the tokenizer of {llm} has no chat template; add chat_template.jinja, or "
                f"name a conversation_template ({', '.join(CONVERSATION_TEMPLATES)})."
            )
        return_ids_and_mask_only(tokenizer)
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [IMAGE_TOKEN]}, replace_additional_special_tokens=False
        )
        # Llama's models are published with the unknown token there, which stands for real text.
        if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.unk_token:
            tokenizer.add_special_tokens({"pad_token": PADDING_TOKEN})

    def describe(
        self,
        text: PretrainedConfig,
        vision: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
    ) -> LlavaConfig:
        """Return a LlavaConfig: the features of the last layer but one, without class token."""
        has_class_token = CLASS_TOKENS[vision.model_type] > 0
        if isinstance(vision, SiglipVisionConfig):
            vision.vision_use_head = False
        text.pad_token_id = tokenizer.pad_token_id
        fields = {
            "vision_config": vision,
            "text_config": text,
            "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default" if has_class_token else "full",
            "tie_word_embeddings": text.tie_word_embeddings,
        }
        config = llava_config(self.projector_type, self.image_scales, **fields)
        config.image_seq_length = slots_per_image(config)
        return config

    def table(self, description: PretrainedConfig) -> list[Row]:
        """Return the rows of LLaVA."""
        return llava_table(description)

    def language_drops(self, text: PretrainedConfig) -> list[Dropped]:
        """Constants of older files, and a tied output layer again."""
        return llava_drops(text)

    def vision_drops(self, vision: PretrainedConfig) -> list[Dropped]:
        """What a whole CLIP or SigLIP has beyond the tower."""
        drops = {CLIPVisionConfig: WHOLE_CLIP, SiglipVisionConfig: WHOLE_SIGLIP}
        return drops.get(type(vision), [])

    def megatron_config(self, description: PretrainedConfig):
        """Return NeMo's description of LLaVA."""
        from models.llava.config import config_from_hf

        return config_from_hf(description)

    def projector(self, config) -> torch.nn.Module:
        """Build LLaVA's projector."""
        from models.llava.projector import build_projector

        return build_projector(config)

    def write_assets(
        self,
        folder: Path,
        description: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        vision: str | Path,
    ) -> None:
        """Write configuration, tokenizer and processor."""
        images = self._image_processor(Path(vision), description)
        write_processor(folder, description, tokenizer, images)
        description.save_pretrained(folder)
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            # A placeholder in an answer has no image: the model must not be able to write one.
            suppress_tokens=[description.image_token_index],
        ).save_pretrained(folder)

    def _image_processor(self, vision: Path, description: PretrainedConfig):
        """Return the vision model's own processor, or one of the tower's size and usual values."""
        size = input_side(description)
        square = {"height": size, "width": size}
        own = vision / "preprocessor_config.json"
        values = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
        if isinstance(description.vision_config, SiglipVisionConfig):
            if self.image_aspect_ratio != "square":
                raise ValueError(
                    f"image_aspect_ratio: {self.image_aspect_ratio!r} is for CLIP; SigLIP resizes "
                    "whole images ('square')."
                )
            # Bicubic, as for NVILA: some published SigLIP files name it, some name nothing.
            return SiglipImageProcessor(size=square, resample=_BICUBIC)
        known = {name: values[name] for name in ("image_mean", "image_std") if name in values}
        if isinstance(description.vision_config, InternVLVisionConfig):
            known = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD} | known
        geometry = {"size": {"shortest_edge": size}, "crop_size": square}
        if self.image_aspect_ratio == "pad":
            return LlavaImageProcessor(do_pad=True, **geometry, **known)
        return CLIPImageProcessor(**geometry, **known)


def return_ids_and_mask_only(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer return no token_type_ids: a GPT-2 would add them to its input, as words."""
    names = ["input_ids", "attention_mask"]
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names  # what is saved
