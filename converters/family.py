"""What a family of models brings so that the verbs import, export and verify work for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from converters.file_writer import FileTask
from converters.hf_weights import HfWeights
from converters.lazy import LazyTensor
from converters.mapping import without_dropped
from converters.rows import Dropped, Row

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature, PretrainedConfig, PreTrainedModel

    from models.family_config import FamilyConfig
    from models.training_module import TrainingModule


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question to both models, in the processor's own terms."""

    text: str
    images: tuple[Image, ...] = ()


class Family(ABC):
    """One family; stateless.

    Importing it loads transformers only. What needs NeMo is loaded by the methods that need it.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    hint: ClassVar[str] = ""
    """Put behind the message that a directory is of another family."""

    read_as: ClassVar[tuple[str, ...]] = ()
    """Names of families whose directories become checkpoints of this one."""

    layouts: ClassVar[tuple[str, ...]] = ("hf",)
    """Ways to write an export; `hf` is one directory that transformers loads."""

    @property
    @abstractmethod
    def lightning_class(self) -> type[TrainingModule]:
        """The class that a checkpoint's context describes."""

    @abstractmethod
    def describe(self, assets: Path) -> FamilyConfig:
        """Return NeMo's description of the model whose config.json lies in a folder.

        Raises:
            ValueError: it asks for something that the model does not have.
        """

    @abstractmethod
    def table(self, assets: Path) -> list[Row]:
        """Return the rows that map every tensor of the model whose config.json lies in a folder."""

    def drops(self, assets: Path) -> list[Dropped]:
        """Return the rows of the table that have no tensor of the model."""
        return []

    def table_names(self, hf: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return a directory's tensors under the names of the table.

        Raises:
            ValueError: they do not fit the directory's config.json.
        """
        return dict(tensors)

    def known_tensors(self, hf: Path, weights: HfWeights) -> dict[str, LazyTensor]:
        """Return a directory's tensors under the names of the table, without what is dropped.

        Raises:
            ValueError: they do not fit the directory's config.json.
        """
        tensors = self.table_names(hf, weights.tensors)
        return without_dropped(self.drops(hf), tensors, f"hf: {hf}", weights.release)

    @abstractmethod
    def hf_model(self, directory: Path) -> PreTrainedModel:
        """Build the Hugging Face model of a config.json, with no weights to speak of."""

    @abstractmethod
    def hf_shapes(self, assets: Path) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor on disk, as the Hugging Face model has it."""

    def disk_tensors(
        self, assets: Path, tensors: Mapping[str, LazyTensor]
    ) -> dict[str, LazyTensor]:
        """Return tensors with the names of the table as files hold them.

        Args:
            assets: of the model.
            tensors: of the table.
        """
        return dict(tensors)

    @abstractmethod
    def hf_layers(self, assets: Path) -> str:
        """Return where the Hugging Face model has the layers of its language model."""

    whole_modules: ClassVar[tuple[str, ...]]
    """Modules of the Hugging Face model beside the language model, which an adapter directory may
    hold as a whole."""

    def adapter_parts(self, assets: Path, parts: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return the outer matrices of a layer's adapters as its Hugging Face modules need them.

        Args:
            assets: of the model.
            parts: by the names of the table.
        """
        return dict(parts)

    def has_transposed_layers(self, assets: Path) -> bool:
        """Return whether the language model's layers hold their weights as [in, out]."""
        return False

    def memory_name(self, key: str) -> str:
        """Return the Hugging Face model's name of a tensor with a name on disk."""
        return key

    def complete_assets(self, assets: Path, source: str) -> None:
        """Make the files that a server needs and that can be derived from the others.

        Args:
            assets: copies of the directory's small files.
            source: what the user gave, for messages.

        Raises:
            ValueError: a file is missing that cannot be made, or one does not fit the model.
        """
        return

    def check_target(self, out: Path) -> None:
        """Refuse a target under which the export could not be loaded.

        Raises:
            ValueError: the name is not allowed.
        """
        return

    def write_code(self, folder: Path) -> None:
        """Write the modelling code that an exported directory needs."""
        return

    def plan_layout(
        self, layout: str, folder: Path, assets: Path, tensors: Mapping[str, LazyTensor]
    ) -> list[FileTask[None]]:
        """Write the small files of a layout of the family's own (any of `layouts` but hf).

        Returns:
            What writes the large ones.
        """
        raise AssertionError(layout)

    def check_code(self, hf: Path) -> None:
        """Refuse a directory whose modelling code is not this project's.

        Raises:
            ValueError: there is code, or a reference to code, that is not known.
        """
        return

    runs_directory_code: ClassVar[bool] = False
    """Whether transformers needs the modelling code in the directory."""

    @abstractmethod
    def prompts(self, processor: Any, description: PretrainedConfig) -> dict[str, Prompt]:
        """Return questions by kind, for the comparison of logits."""

    @abstractmethod
    def model_inputs(self, processor: Any, inputs: BatchFeature) -> dict[str, Tensor | None]:
        """Turn a processor's output for one sample into the Megatron-Core model's arguments."""
