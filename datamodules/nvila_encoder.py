"""Samples of the NVILA-Lite family: every tile takes positions of the text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from datamodules.conversation import IGNORED, shifted_labels, tokenize_conversation
from datamodules.document import Span, cut_position, tokenize_document
from datamodules.encoder import EncodingPlan, learnt_answers, placeholders
from datamodules.image_slot_collate import ImageSlotSample
from datamodules.image_slot_encoder import ImageSlotEncoder
from datamodules.images import ImageStore, decode_image, image_size
from datamodules.nvila_assets import TILE_TEXT, NvilaAssets, load_nvila_assets, nvila_message
from datamodules.nvila_tiles import fill_tiles, fill_tiles_exactly
from models.hf_code.prompt_nvila_lite import (
    IMAGE_TOKEN,
    expand_images,
    expand_tile_tokens,
)
from models.hf_code.tiling_nvila_lite import tile_count
from sample_loaders.conversation import ConversationSample, Turn
from sample_loaders.document import DocumentSample
from sample_loaders.errors import BadSample, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNvilaImage:
    """An image that is not decoded yet: its largest grid, and its tiles, thumbnail included."""

    name: str
    max_tiles: int
    tiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NvilaPlan(EncodingPlan):
    """A sample whose positions are all known while no image is decoded.

    Attributes:
        images: The images to decode, in order.
    """

    images: tuple[PlannedNvilaImage, ...]

    @property
    def tiles(self) -> int:
        """Number of tiles of all images."""
        return sum(image.tiles for image in self.images)


class NvilaEncoder(ImageSlotEncoder[NvilaAssets, NvilaPlan]):
    """Encodes conversations for models of the NVILA-Lite family.

    A sample that is too long first gets smaller tile grids, the same bound for all of its images
    and no image ever without a tile, then loses whole questions with their answers from the end.
    Half an image or half a turn never goes in. A document loses its end. All of this happens before
    an image is decoded.

    Args:
        config: How to encode; `max_tiles` does not count the thumbnail.
    """

    def decode(self, plan: NvilaPlan, images: ImageStore | None = None) -> ImageSlotSample:
        """Adds the tiles to a plan.

        Raises:
            BadSample: An image is damaged.
        """
        store = self._store(images)
        size = self.assets.tile_size
        fill = fill_tiles_exactly if self.config.image_resize == "exact" else fill_tiles
        tiles = np.empty((plan.tiles, 3, size, size), dtype=np.uint8)
        first = 0
        for image in plan.images:
            pixels = decode_image(store, image.name, self.config.max_image_pixels)
            fill(tiles[first : first + image.tiles], pixels, image.max_tiles)
            first += image.tiles
        return ImageSlotSample(key=plan.key, tokens=plan.tokens, labels=plan.labels, tiles=tiles)

    def plan_alike(
        self, samples: Sequence[ConversationSample], images: ImageStore | None = None
    ) -> list[NvilaPlan]:
        """Plans samples with the same images so that all of them cut these into the same tiles.

        Raises:
            BadSample: One of them cannot be used.
        """
        plans = super().plan_alike(samples, images)
        bounds = [image.max_tiles for plan in plans for image in plan.images]
        if len(set(bounds)) < 2:
            return plans
        return [self.plan(replace(one, max_tiles=min(bounds)), images) for one in samples]

    def _load_assets(self) -> NvilaAssets:
        return load_nvila_assets(self.config.assets, self.config.conversation_template)

    def _plan(self, sample: ConversationSample, store: ImageStore) -> NvilaPlan:
        sizes = self._sizes(sample.images, store)
        turns: Sequence[Turn] = sample.turns
        plan = self._fit(sample, turns, sizes)
        while plan is None:
            turns = self._without_last_answer(sample, turns, "one tile per image")
            plan = self._fit(sample, turns, sizes)
        return plan

    def _fit(
        self,
        sample: ConversationSample,
        turns: Sequence[Turn],
        sizes: Sequence[tuple[int, int]],
    ) -> NvilaPlan | None:
        """Plans these turns with the largest grids that fit, or None if none do."""
        used = placeholders(turns)
        largest = self.max_tiles_of(sample)
        grids = self._tile_counts(sizes[:used], largest)
        plan = self._plan_turns(sample, turns, grids, largest)
        if self.fits(plan.length, plan.tiles):
            return plan
        # A tile more or less is its image positions, its closing newline and its line of text.
        positions = self.assets.tokens_per_tile + 2
        for max_tiles in range(largest - 1, 0, -1):
            smaller = self._tile_counts(sizes[:used], max_tiles)
            length = plan.length - (sum(grids) - sum(smaller)) * positions
            if self.fits(length, sum(smaller)):
                fitted = self._plan_turns(sample, turns, smaller, max_tiles)
                assert fitted.length == length, f"{fitted.length} positions, foretold {length}"
                return fitted
        return None

    def _plan_document(self, sample: DocumentSample, store: ImageStore) -> NvilaPlan:
        """Cuts the end off, with whole images; grids get smaller only where no text would stay."""
        sizes = self._sizes(sample.images, store)
        for max_tiles in range(self.max_tiles_of(sample), 0, -1):
            plan = self._plan_text(sample, self._tile_counts(sizes, max_tiles), max_tiles)
            if (plan.labels != IGNORED).any():
                return plan
        raise BadSample(
            Reason.TOO_LONG,
            f"The first image leaves no room for text in seq_length={self.config.seq_length} "
            f"positions.",
        )

    def _plan_text(self, sample: DocumentSample, tiles: Sequence[int], max_tiles: int) -> NvilaPlan:
        assets = self.assets
        text = expand_images(sample.text, tiles)
        ids, supervised = tokenize_document(text, assets.tokenizer, TILE_TEXT)
        tokens, origin = expand_tile_tokens(
            ids, assets.image_token_id, assets.newline_token_id, assets.tokens_per_tile
        )
        spans = _image_spans(ids, origin, tiles, assets.image_token_id)
        end = cut_position(len(tokens), self.config.seq_length, spans)
        kept = sum(stop <= end for _, stop in spans)
        while not self.fits(end, sum(tiles[:kept])):
            kept -= 1
            end = spans[kept][0]
        return NvilaPlan(
            key=sample.key,
            tokens=tokens[:end],
            labels=shifted_labels(tokens[:end], supervised[origin][:end]),
            images=tuple(
                PlannedNvilaImage(name=name, max_tiles=max_tiles, tiles=count)
                for name, count in zip(sample.images[:kept], tiles[:kept], strict=True)
            ),
        )

    def _sizes(self, names: Sequence[str], store: ImageStore) -> list[tuple[int, int]]:
        return [image_size(store, name, self.config.max_image_pixels) for name in names]

    def _tile_counts(self, sizes: Sequence[tuple[int, int]], max_tiles: int) -> list[int]:
        tile_size = self.assets.tile_size
        return [tile_count(width, height, tile_size, max_tiles) for width, height in sizes]

    def _plan_turns(
        self,
        sample: ConversationSample,
        turns: Sequence[Turn],
        tiles: Sequence[int],
        max_tiles: int,
    ) -> NvilaPlan:
        assets = self.assets
        messages = [nvila_message(turn.role, turn.text) for turn in _expand_turns(turns, tiles)]
        rendered = learnt_answers(sample, assets.template.render(messages))
        ids, supervised = tokenize_conversation(rendered, assets.tokenizer, TILE_TEXT)
        found = int((ids == assets.image_token_id).sum())
        if found != sum(tiles):
            raise BadSample(
                Reason.TEMPLATE_CHANGES,
                f"The chat template prints {found} tiles for images of {sum(tiles)}.",
            )
        tokens, origin = expand_tile_tokens(
            ids, assets.image_token_id, assets.newline_token_id, assets.tokens_per_tile
        )
        names = sample.images[: len(tiles)]
        return NvilaPlan(
            key=sample.key,
            tokens=tokens,
            labels=shifted_labels(tokens, supervised[origin]),
            images=tuple(
                PlannedNvilaImage(name=name, max_tiles=max_tiles, tiles=count)
                for name, count in zip(names, tiles, strict=True)
            ),
        )


def _image_spans(
    ids: np.ndarray, origin: np.ndarray, tiles: Sequence[int], image_token_id: int
) -> list[Span]:
    """Finds the positions of each image, from its first tile to the newline that closes its last.

    Args:
        ids: Token ids int64 [length] with one image id per tile.
        origin: For every position, which of the ids it came from.
        tiles: Tiles of each image.
        image_token_id: Id of a tile.
    """
    (places,) = np.nonzero(ids == image_token_id)
    assert len(places) == sum(tiles), f"{len(places)} tiles of {sum(tiles)}"
    starts, stops = np.searchsorted(origin, places), np.searchsorted(origin, places, side="right")
    ends = np.cumsum(tiles)
    return [
        (int(starts[end - count]), int(stops[end - 1]))
        for end, count in zip(ends, tiles, strict=True)
    ]


def _expand_turns(turns: Sequence[Turn], tiles: Sequence[int]) -> list[Turn]:
    """Writes every tile's placeholder into the turn that its image stands in."""
    expanded, first = [], 0
    for turn in turns:
        last = first + turn.text.count(IMAGE_TOKEN)
        expanded.append(replace(turn, text=expand_images(turn.text, tiles[first:last])))
        first = last
    return expanded
