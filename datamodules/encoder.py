"""What the encoders of all families share: how they are set up, and what happens in which order."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from datamodules.assets import EncodingAssets
from datamodules.collate import Encoded
from datamodules.conversation import IGNORED, GivenTemplate, RenderedConversation
from datamodules.image_resize import ImageResize, check_image_resize
from datamodules.images import ImageFolder, ImageStore
from sample_loaders.conversation import IMAGE_PLACEHOLDER, ConversationSample, Turn
from sample_loaders.document import DocumentSample
from sample_loaders.document import Sample as RawSample
from sample_loaders.errors import BadSample, Reason
from sample_loaders.preference import PreferenceSample

# Above this PIL itself warns of a decompression bomb.
LARGEST_IMAGE = 89_478_485


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """How samples are encoded.

    Attributes:
        assets: Folder with the configuration and the tokenizer of the model.
        seq_length: No sample has more positions than this.
        image_folder: Where images are if `encode` is not told otherwise.
        max_tiles: Largest number of tiles of an image; None takes the model's own.
        max_tiles_per_sample: No sample has more tiles than this in all; None for no bound.
        max_image_pixels: Larger images are bad samples.
        image_resize: "exact" resizes with Pillow, "fast" in much less time, with pixels that
            differ by at most two of 255 levels.
        conversation_template: Goes before the tokenizer's own template: a name, `plain` (images,
            answer, newline), or a `ConversationTemplate`.
    """

    assets: str
    seq_length: int
    image_folder: str = ""
    max_tiles: int | None = None
    max_tiles_per_sample: int | None = None
    max_image_pixels: int = LARGEST_IMAGE
    image_resize: ImageResize = "fast"
    conversation_template: GivenTemplate = None

    def __post_init__(self) -> None:
        for name in ("seq_length", "max_tiles", "max_tiles_per_sample", "max_image_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1.")
        check_image_resize(self.image_resize)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingPlan(ABC):
    """A sample whose positions are all known while no image is decoded.

    Attributes:
        key: The sample's key.
        tokens: int64 [length], image positions included.
        labels: int64 [length], already shifted.
    """

    key: str
    tokens: np.ndarray
    labels: np.ndarray

    @property
    def length(self) -> int:
        """Number of positions."""
        return len(self.tokens)

    @property
    @abstractmethod
    def tiles(self) -> int:
        """Number of tiles of all images."""


Assets = TypeVar("Assets", bound=EncodingAssets)
Plan = TypeVar("Plan", bound=EncodingPlan)
Sample = TypeVar("Sample", bound=Encoded)


class ConversationEncoder(ABC, Generic[Assets, Plan, Sample]):
    """Encodes samples in two steps: a plan without pixels, and decoding what it names.

    Args:
        config: How to encode.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config

    @cached_property
    def assets(self) -> Assets:
        """The tokenizer and the shapes; read when first used, so that checks can come first."""
        return self._load_assets()

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows of a batch."""
        return self.assets.pad_token_id

    @property
    def max_tiles(self) -> int:
        """Largest number of tiles of an image."""
        return self.config.max_tiles or self.assets.max_tiles

    def max_tiles_of(self, sample: RawSample) -> int:
        """Returns the largest number of tiles of an image of this sample."""
        return min(self.max_tiles, sample.max_tiles or self.max_tiles)

    def fits(self, length: int, tiles: int) -> bool:
        """Returns whether a sample is within the allowed length and number of tiles."""
        budget = self.config.max_tiles_per_sample
        return length <= self.config.seq_length and (budget is None or tiles <= budget)

    def prepare(self) -> None:
        """Reads the assets, so that their errors come before any worker starts.

        Raises:
            ValueError: The assets do not suit.
        """
        _ = self.assets

    def encode(self, sample: RawSample, images: ImageStore | None = None) -> Sample:
        """Encodes a sample.

        Args:
            sample: The conversation or the document.
            images: Where its images are; None takes the configured folder.

        Raises:
            BadSample: The sample cannot be used.
        """
        store = self._store(images)
        return self.decode(self.plan(sample, store), store)

    def length(self, sample: RawSample, images: ImageStore | None = None) -> int:
        """Returns the number of positions, reading no more of an image than its header.

        Raises:
            BadSample: The sample cannot be used.
        """
        return self.plan(sample, images).length

    def plan(self, sample: RawSample, images: ImageStore | None = None) -> Plan:
        """Does everything that needs no pixels.

        Raises:
            BadSample: The sample cannot be used.
        """
        store = self._store(images)
        if isinstance(sample, PreferenceSample):
            raise BadSample(
                Reason.WRONG_TYPE,
                "The record has a chosen and a rejected answer, but preferences are trained on "
                "with preference_pairs=True only.",
            )
        if isinstance(sample, DocumentSample):
            self._check_texts({"The document": sample.text})
            plan = self._plan_document(sample, store)
        else:
            texts = {f"Turn {number}": turn.text for number, turn in enumerate(sample.turns)}
            self._check_texts(texts)
            plan = self._plan(sample, store)
        if not (plan.labels != IGNORED).any():
            raise BadSample(Reason.NO_SUPERVISED_TOKEN, "No token of the sample would be learnt.")
        return plan

    def plan_alike(
        self, samples: Sequence[ConversationSample], images: ImageStore | None = None
    ) -> list[Plan]:
        """Plans samples with the same images so that all of them show these alike.

        Raises:
            BadSample: One of them cannot be used.
        """
        return [self.plan(sample, images) for sample in samples]

    @abstractmethod
    def decode(self, plan: Plan, images: ImageStore | None = None) -> Sample:
        """Adds the pixels to a plan.

        Raises:
            BadSample: An image is damaged.
        """

    @abstractmethod
    def _load_assets(self) -> Assets: ...

    @abstractmethod
    def _plan(self, sample: ConversationSample, store: ImageStore) -> Plan:
        """Plans a conversation within what is allowed."""

    @abstractmethod
    def _plan_document(self, sample: DocumentSample, store: ImageStore) -> Plan:
        """Plans a document within what is allowed."""

    def _store(self, images: ImageStore | None) -> ImageStore:
        return ImageFolder(self.config.image_folder) if images is None else images

    def _check_texts(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            found = self.assets.control_tokens.search(text)
            if found:
                raise BadSample(
                    Reason.CONTROL_TOKEN, f"{name} holds the control token {found.group()!r}."
                )

    def _without_last_answer(
        self, sample: ConversationSample, turns: Sequence[Turn], images: str
    ) -> Sequence[Turn]:
        """Takes the last question and its answer away.

        Args:
            sample: The turns' sample.
            turns: Turns that are too long.
            images: How the images are counted, for the message.

        Raises:
            BadSample: There is only one answer, or the last one is what is learnt.
        """
        if sum(turn.role == "assistant" for turn in turns) < 2 or sample.learns_last_answer_only:
            budget = self.config.max_tiles_per_sample
            has = "first question and answer have"
            if sample.learns_last_answer_only:
                has = "conversation has"
            raise BadSample(
                Reason.TOO_LONG,
                f"The {has} more than seq_length={self.config.seq_length} positions"
                + ("" if budget is None else f", or more than {budget} tiles,")
                + f" with {images}.",
            )
        return turns[:-2]


def learnt_answers(
    sample: ConversationSample, rendered: RenderedConversation
) -> RenderedConversation:
    """Leaves the spans of those answers that a sample is there to teach."""
    if sample.learns_last_answer_only:
        return replace(rendered, spans=rendered.spans[-1:])
    return rendered


def placeholders(turns: Sequence[Turn]) -> int:
    """Counts the images that stand in some turns."""
    return sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
