"""From a conversation to tokens, labels and tiles, within a length that is known beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from datamodules.assets import EncodingAssets, load_assets
from datamodules.conversation import (
    IGNORED,
    render_conversation,
    shifted_labels,
    tokenize_conversation,
)
from datamodules.images import ImageFolder, ImageStore, decode_image, image_size
from models.nvila.hf_code.prompt_nvila_lite import (
    IMAGE_TOKEN,
    expand_images,
    expand_tile_tokens,
)
from models.nvila.hf_code.tiling_nvila_lite import cut_tiles, tile_count
from sample_loaders.conversation import ConversationSample, Turn
from sample_loaders.errors import BadSample, Reason

# Above this PIL itself warns of a decompression bomb.
LARGEST_IMAGE = 89_478_485


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """How samples are encoded.

    Attributes:
        assets: Folder with the configuration and the tokenizer of the model.
        seq_length: No sample has more positions than this.
        image_folder: Where images are if `encode` is not told otherwise.
        max_tiles: Largest grid of an image, the thumbnail not counted.
        max_image_pixels: Larger images are bad samples.
    """

    assets: str
    seq_length: int
    image_folder: str = ""
    max_tiles: int = 12
    max_image_pixels: int = LARGEST_IMAGE

    def __post_init__(self) -> None:
        for name in ("seq_length", "max_tiles", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSample:
    """A sample ready for collation.

    Attributes:
        key: The sample's key.
        tokens: int64 [length]; image positions hold the image id, each tile closed by a newline.
        labels: int64 [length], already shifted; -100 where nothing is learnt.
        tiles: uint8 [n, 3, H, W] in the order of their positions; n may be 0.
    """

    key: str
    tokens: np.ndarray
    labels: np.ndarray
    tiles: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedImage:
    """An image that is not decoded yet: its largest grid, and its tiles, thumbnail included."""

    name: str
    max_tiles: int
    tiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingPlan:
    """A sample whose positions are all known while no image is decoded.

    Attributes:
        key: The sample's key.
        tokens: int64 [length], image positions expanded.
        labels: int64 [length], already shifted.
        images: The images to decode, in order.
    """

    key: str
    tokens: np.ndarray
    labels: np.ndarray
    images: tuple[PlannedImage, ...]

    @property
    def length(self) -> int:
        """Number of positions."""
        return len(self.tokens)

    @property
    def tiles(self) -> int:
        """Number of tiles of all images."""
        return sum(image.tiles for image in self.images)


class NvilaEncoder:
    """Encodes conversations for models of the NVILA-Lite family.

    A sample that is too long first gets smaller tile grids, the same bound for all of its images
    and no image ever without a tile, then loses whole questions with their answers from the end.
    Half an image or half a turn never goes in. All of this happens before an image is decoded.

    Args:
        config: How to encode.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config

    @cached_property
    def assets(self) -> EncodingAssets:
        """The tokenizer and the shapes; read when first used, so that checks can come first."""
        return load_assets(self.config.assets)

    def encode(self, sample: ConversationSample, images: ImageStore | None = None) -> EncodedSample:
        """Encodes a sample.

        Args:
            sample: The conversation.
            images: Where its images are; None takes the configured folder.

        Raises:
            BadSample: The sample cannot be used.
        """
        store = self._store(images)
        plan = self.plan(sample, store)
        return self.decode(plan, store)

    def length(self, sample: ConversationSample, images: ImageStore | None = None) -> int:
        """Returns the number of positions, reading no more of an image than its header.

        Raises:
            BadSample: The sample cannot be used.
        """
        return self.plan(sample, images).length

    def plan(self, sample: ConversationSample, images: ImageStore | None = None) -> EncodingPlan:
        """Does everything that needs no pixels.

        Raises:
            BadSample: The sample cannot be used.
        """
        store = self._store(images)
        self._check_texts(sample.turns)
        sizes = [image_size(store, name, self.config.max_image_pixels) for name in sample.images]
        turns = sample.turns
        plan = self._fit(sample, turns, sizes)
        while plan is None:
            turns = turns[:-2]
            if not any(turn.role == "assistant" for turn in turns):
                raise BadSample(
                    Reason.TOO_LONG,
                    f"The first question and answer have more than "
                    f"seq_length={self.config.seq_length} positions with one tile per image.",
                )
            plan = self._fit(sample, turns, sizes)
        if not (plan.labels != IGNORED).any():
            raise BadSample(Reason.NO_SUPERVISED_TOKEN, "No token of the sample would be learnt.")
        return plan

    def decode(self, plan: EncodingPlan, images: ImageStore | None = None) -> EncodedSample:
        """Adds the tiles to a plan.

        Raises:
            BadSample: An image is damaged.
        """
        store = self._store(images)
        size = self.assets.tile_size
        cut = [np.zeros((0, 3, size, size), dtype=np.uint8)]
        for image in plan.images:
            pixels = decode_image(store, image.name, self.config.max_image_pixels)
            tiles = cut_tiles(pixels, size, image.max_tiles)
            assert len(tiles) == image.tiles, f"{image} was cut into {len(tiles)} tiles"
            cut.append(tiles)
        return EncodedSample(
            key=plan.key, tokens=plan.tokens, labels=plan.labels, tiles=np.concatenate(cut)
        )

    def _store(self, images: ImageStore | None) -> ImageStore:
        return ImageFolder(self.config.image_folder) if images is None else images

    def _check_texts(self, turns: Sequence[Turn]) -> None:
        for number, turn in enumerate(turns):
            found = self.assets.control_tokens.search(turn.text)
            if found:
                raise BadSample(
                    Reason.CONTROL_TOKEN,
                    f"Turn {number} holds the control token {found.group()!r}.",
                )

    def _fit(
        self,
        sample: ConversationSample,
        turns: Sequence[Turn],
        sizes: Sequence[tuple[int, int]],
    ) -> EncodingPlan | None:
        """Plans these turns with the largest grids that fit, or None if none do."""
        used = _placeholders(turns)
        grids = self._tile_counts(sizes[:used], self.config.max_tiles)
        plan = self._plan_turns(sample, turns, grids, self.config.max_tiles)
        if plan.length <= self.config.seq_length:
            return plan
        # A tile more or less is its image positions, its closing newline and its line of text.
        positions = self.assets.tokens_per_tile + 2
        for max_tiles in range(self.config.max_tiles - 1, 0, -1):
            smaller = self._tile_counts(sizes[:used], max_tiles)
            length = plan.length - (sum(grids) - sum(smaller)) * positions
            if length <= self.config.seq_length:
                fitted = self._plan_turns(sample, turns, smaller, max_tiles)
                assert fitted.length == length, f"{fitted.length} positions, foretold {length}"
                return fitted
        return None

    def _tile_counts(self, sizes: Sequence[tuple[int, int]], max_tiles: int) -> list[int]:
        tile_size = self.assets.tile_size
        return [tile_count(width, height, tile_size, max_tiles) for width, height in sizes]

    def _plan_turns(
        self,
        sample: ConversationSample,
        turns: Sequence[Turn],
        tiles: Sequence[int],
        max_tiles: int,
    ) -> EncodingPlan:
        assets = self.assets
        rendered = render_conversation(_expand_turns(turns, tiles), assets.tokenizer)
        ids, supervised = tokenize_conversation(rendered, assets.tokenizer)
        found = int((ids == assets.image_token_id).sum())
        assert found == sum(tiles), f"{found} tiles in the text of {sample.key}, not {sum(tiles)}"
        tokens, origin = expand_tile_tokens(
            ids, assets.image_token_id, assets.newline_token_id, assets.tokens_per_tile
        )
        names = sample.images[: len(tiles)]
        return EncodingPlan(
            key=sample.key,
            tokens=tokens,
            labels=shifted_labels(tokens, supervised[origin]),
            images=tuple(
                PlannedImage(name=name, max_tiles=max_tiles, tiles=count)
                for name, count in zip(names, tiles, strict=True)
            ),
        )


def _placeholders(turns: Sequence[Turn]) -> int:
    return sum(turn.text.count(IMAGE_TOKEN) for turn in turns)


def _expand_turns(turns: Sequence[Turn], tiles: Sequence[int]) -> list[Turn]:
    """Writes every tile's placeholder into the turn that its image stands in."""
    expanded, first = [], 0
    for turn in turns:
        last = first + turn.text.count(IMAGE_TOKEN)
        expanded.append(replace(turn, text=expand_images(turn.text, tiles[first:last])))
        first = last
    return expanded
