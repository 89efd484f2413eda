"""What a family brings so that two parents and a fresh projector become one of its models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from converters.lazy import LazyTensor
from converters.rows import Dropped, Row

if TYPE_CHECKING:
    from models.family_config import FamilyConfig


class Assembly(ABC):
    """How the parts are put together. Prefixes are those of the family's table."""

    language_configs: ClassVar[Sequence[type[PretrainedConfig]]]
    vision_configs: ClassVar[Sequence[type[PretrainedConfig]]]
    language_prefix: ClassVar[str]
    vision_prefix: ClassVar[str]
    projector_prefix: ClassVar[str]

    vocabulary_tables: ClassVar[Sequence[str]] = ("model.embed_tokens.weight", "lm_head.weight")
    """Tensors of the language model with a row for each token, below its prefix."""

    def language_names(
        self, text: PretrainedConfig, tensors: Mapping[str, LazyTensor]
    ) -> dict[str, LazyTensor]:
        """Return the language model's tensors under the names of the table."""
        return dict(tensors)

    def vision_names(
        self, vision: PretrainedConfig, tensors: Mapping[str, LazyTensor]
    ) -> dict[str, LazyTensor]:
        """Return the vision model's tensors under the names of the table."""
        return dict(tensors)

    @abstractmethod
    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase, llm: str | Path) -> None:
        """Add the family's tokens, and the chat template where it is given.

        Raises:
            ValueError: the tokenizer does not suit.
        """

    @abstractmethod
    def describe(
        self,
        text: PretrainedConfig,
        vision: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
    ) -> PretrainedConfig:
        """Return config.json of the whole; the vocabulary is the tokenizer's."""

    @abstractmethod
    def table(self, description: PretrainedConfig) -> list[Row]:
        """Return the rows of the whole."""

    @abstractmethod
    def language_drops(self, text: PretrainedConfig) -> list[Dropped]:
        """Return what the language model's directory may hold beyond the model."""

    @abstractmethod
    def vision_drops(self, vision: PretrainedConfig) -> list[Dropped]:
        """Return what the vision model's directory may hold beyond the tower."""

    @abstractmethod
    def megatron_config(self, description: PretrainedConfig) -> FamilyConfig:
        """Return NeMo's description of the whole."""

    @abstractmethod
    def projector(self, config: FamilyConfig) -> torch.nn.Module:
        """Build the projector with fresh weights."""

    @abstractmethod
    def write_assets(
        self,
        folder: Path,
        description: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        vision: str | Path,
    ) -> None:
        """Write the small files of the whole.

        Raises:
            ValueError: the parents' files do not fit.
        """
