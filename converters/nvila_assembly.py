"""NVILA of a Qwen2 and a SigLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

from converters.assembly import Assembly
from converters.hf_directory import write_assets
from converters.nvila import WHOLE_SIGLIP, nvila_drops, nvila_table
from converters.rows import Dropped, Row
from models.hf_code.configuration_nvila_lite import NVILALiteConfig

MEDIA_TOKENS = ("<vila/sentinel>", "<image>", "<vila/video>")
"""Added to the language model's tokenizer in the published order."""

BEGIN_TOKEN, PADDING_TOKEN = "[BOS]", "[PAD]"
"""Added after them: [BOS] where the tokenizer has none, [PAD] always, as published."""


@dataclass(frozen=True, kw_only=True)
class NvilaAssembly(Assembly):
    """How an NVILA is put together.

    Attributes:
        projector_type: mlp_downsample_2x2_fix or mlp_downsample_3x3_fix.
        max_tiles: tiles of one image at inference, the thumbnail not counted.
    """

    projector_type: str = "mlp_downsample_2x2_fix"
    max_tiles: int = 12

    language_configs: ClassVar[Sequence[type[PretrainedConfig]]] = (Qwen2Config,)
    vision_configs: ClassVar[Sequence[type[PretrainedConfig]]] = (SiglipVisionConfig,)
    language_prefix: ClassVar[str] = "llm."
    vision_prefix: ClassVar[str] = "vision_tower."
    projector_prefix: ClassVar[str] = "mm_projector."

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase, llm: str | Path) -> None:
        """Add the media tokens, as published; the chat template is the language model's."""
        if not tokenizer.chat_template:
            raise ValueError(
                f"llm: the tokenizer of {llm} has no chat template; use an instruction-tuned model "
                "or add chat_template.jinja."
            )
        _newline_id(tokenizer, f"llm: the tokenizer of {llm}")
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(MEDIA_TOKENS)},
            replace_additional_special_tokens=False,
        )
        if tokenizer.bos_token is None:
            tokenizer.add_special_tokens({"bos_token": BEGIN_TOKEN})
        tokenizer.add_special_tokens({"pad_token": PADDING_TOKEN})

    def describe(
        self,
        text: PretrainedConfig,
        vision: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
    ) -> NVILALiteConfig:
        """Return the configuration of NVILA-Lite."""
        return NVILALiteConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            newline_token_id=_newline_id(tokenizer, "llm: the tokenizer"),
            mm_projector_type=self.projector_type,
            max_tiles=self.max_tiles,
        )

    def table(self, description: PretrainedConfig) -> list[Row]:
        """Return the rows of NVILA."""
        return nvila_table(description)

    def language_drops(self, text: PretrainedConfig) -> list[Dropped]:
        """A tied output layer again."""
        return nvila_drops(text)

    def vision_drops(self, vision: PretrainedConfig) -> list[Dropped]:
        """The text model and the pooling head of a whole SigLIP."""
        return WHOLE_SIGLIP

    def megatron_config(self, description: PretrainedConfig):
        """Return NeMo's description of NVILA."""
        from models.nvila.config import config_from_hf

        return config_from_hf(description)

    def projector(self, config) -> torch.nn.Module:
        """Build NVILA's projector."""
        from models.nvila.projector import build_projector

        return build_projector(config)

    def write_assets(
        self,
        folder: Path,
        description: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        vision: str | Path,
    ) -> None:
        """Write configuration, tokenizer and processor; the latter follows from config.json."""
        write_assets(folder, description, tokenizer)


def _newline_id(tokenizer: PreTrainedTokenizerBase, place: str) -> int:
    ids = tokenizer.encode("\n", add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"{place} splits a newline into {len(ids)} tokens; it must be one.")
    return ids[0]
