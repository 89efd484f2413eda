"""Samples of the MLlama family: an image takes one position, and later text attends to it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from datamodules.collate import joined
from datamodules.conversation import IGNORED, shifted_labels, tokenize_conversation
from datamodules.document import cut_position, tokenize_document
from datamodules.encoder import ConversationEncoder, EncodingPlan, learnt_answers, placeholders
from datamodules.image_resize import image_pixels, resize_bilinear
from datamodules.images import ImageStore, decode_image, image_size
from datamodules.mllama_assets import MllamaAssets, load_mllama_assets
from datamodules.mllama_collate import MllamaCollator, MllamaSample
from models.mllama.image_spans import image_spans
from models.mllama.prompt import IMAGE_PLACEHOLDER, IMAGE_TOKEN, chat_message
from models.mllama.tiling import (
    Canvas,
    aspect_ratio_id,
    choose_canvas,
    cut_tiles,
    on_white,
    resize_exactly,
)
from sample_loaders.conversation import ConversationSample, Turn
from sample_loaders.document import DocumentSample, Sample
from sample_loaders.errors import BadSample, Reason

_IMAGE_TEXT = re.compile(re.escape(IMAGE_TOKEN))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMllamaImage:
    """An image that is not decoded yet: the most tiles it may take, and the canvas it will fill."""

    name: str
    max_tiles: int
    canvas: Canvas


@dataclass(frozen=True, slots=True, kw_only=True)
class MllamaPlan(EncodingPlan):
    """A sample whose positions are all known while no image is decoded.

    Attributes:
        images: The images to decode, in the order of their positions.
    """

    images: tuple[PlannedMllamaImage, ...]

    @property
    def tiles(self) -> int:
        """Number of tiles of all images."""
        return sum(image.canvas.tiles for image in self.images)


class MllamaEncoder(ConversationEncoder[MllamaAssets, MllamaPlan, MllamaSample]):
    """Encodes conversations for models of the MLlama family.

    A sample that is too long loses whole questions with their answers, and the images in them, from
    the end; smaller canvases would not make it shorter. An image that is lost is not even looked
    at, and no image is kept without its position.

    Args:
        config: How to encode.
    """

    def decode(self, plan: MllamaPlan, images: ImageStore | None = None) -> MllamaSample:
        """Adds the tiles to a plan.

        Raises:
            BadSample: An image is damaged.
        """
        store = self._store(images)
        resize = resize_exactly if self.config.image_resize == "exact" else _resize_fast
        cut = []
        for image in plan.images:
            pixels = decode_image(store, image.name, self.config.max_image_pixels, on_white)
            tiles = cut_tiles(pixels, self.assets.tile_size, image.max_tiles, resize)
            assert len(tiles) == image.canvas.tiles, f"{image} was cut into {len(tiles)} tiles"
            cut.append(tiles)
        canvases = [image.canvas for image in plan.images]
        ids = [aspect_ratio_id(canvas, self.assets.max_tiles) for canvas in canvases]
        return MllamaSample(
            key=plan.key,
            tokens=plan.tokens,
            labels=plan.labels,
            tiles=joined(cut) if cut else self._no_tiles(),
            tiles_per_image=np.array([canvas.tiles for canvas in canvases], dtype=np.int64),
            aspect_ratio_ids=np.array(ids, dtype=np.int64),
            image_spans=image_spans(plan.tokens, self.assets.image_token_id),
        )

    def filler(self, key: str) -> MllamaSample:
        """Makes a sample of one pad token, without label and image."""
        return MllamaSample(
            key=key,
            tokens=np.array([self.pad_token_id], dtype=np.int64),
            labels=np.array([IGNORED], dtype=np.int64),
            tiles=self._no_tiles(),
            tiles_per_image=np.zeros(0, dtype=np.int64),
            aspect_ratio_ids=np.zeros(0, dtype=np.int64),
            image_spans=np.zeros((0, 2), dtype=np.int64),
        )

    def collator(self, pad_to_multiple_of: int, fixed_length: int | None) -> MllamaCollator:
        """Makes what joins samples to micro-batches."""
        return MllamaCollator(
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=pad_to_multiple_of,
            fixed_length=fixed_length,
        )

    def _load_assets(self) -> MllamaAssets:
        assets = load_mllama_assets(self.config.assets, self.config.conversation_template)
        if self.config.max_tiles is not None and self.config.max_tiles > assets.max_tiles:
            raise ValueError(
                f"max_tiles is {self.config.max_tiles}, but the model in {self.config.assets} has "
                f"no more than {assets.max_tiles} tiles per image."
            )
        return assets

    def _plan(self, sample: ConversationSample, store: ImageStore) -> MllamaPlan:
        turns: Sequence[Turn] = sample.turns
        while True:
            tokens, supervised = self._tokenize(sample, turns)
            # Images of what is too long are not even looked at.
            if len(tokens) <= self.config.seq_length:
                images = self._images(sample, placeholders(turns), store)
                if self.fits(len(tokens), sum(image.canvas.tiles for image in images)):
                    break
            turns = self._without_last_answer(sample, turns, "one for each image")
        return MllamaPlan(
            key=sample.key, tokens=tokens, labels=shifted_labels(tokens, supervised), images=images
        )

    def _plan_document(self, sample: DocumentSample, store: ImageStore) -> MllamaPlan:
        text = sample.text.replace(f"{IMAGE_PLACEHOLDER}\n", IMAGE_PLACEHOLDER)
        text = text.replace(IMAGE_PLACEHOLDER, IMAGE_TOKEN)
        tokens, supervised = tokenize_document(text, self.assets.tokenizer, _IMAGE_TEXT)
        spans = [(place, place + 1) for place in self._image_places(tokens)]
        end = cut_position(len(tokens), self.config.seq_length, spans)
        kept = sum(stop <= end for _, stop in spans)
        images = self._images(sample, kept, store)
        while not self.fits(end, sum(image.canvas.tiles for image in images)):
            images = images[:-1]
            end = spans[len(images)][0]
        return MllamaPlan(
            key=sample.key,
            tokens=tokens[:end],
            labels=shifted_labels(tokens[:end], supervised[:end]),
            images=images,
        )

    def _images(
        self, sample: Sample, count: int, store: ImageStore
    ) -> tuple[PlannedMllamaImage, ...]:
        """Plans the first images of a sample."""
        most = self.max_tiles_of(sample)
        return tuple(
            PlannedMllamaImage(name=name, max_tiles=most, canvas=self._canvas(store, name, most))
            for name in sample.images[:count]
        )

    def _image_places(self, ids: np.ndarray) -> list[int]:
        return [int(place) for place in np.flatnonzero(ids == self.assets.image_token_id)]

    def _tokenize(
        self, sample: ConversationSample, turns: Sequence[Turn]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids int64 [length] of these turns, and whether each is learnt."""
        template = self.assets.template
        messages = [chat_message(turn.role, turn.text) for turn in turns]
        rendered = learnt_answers(sample, template.render(messages))
        ids, supervised = tokenize_conversation(rendered, template.tokenizer, _IMAGE_TEXT)
        found = len(self._image_places(ids))
        if found != placeholders(turns):
            raise BadSample(
                Reason.TEMPLATE_CHANGES,
                f"The chat template prints {found} of the {placeholders(turns)} images of the "
                f"conversation.",
            )
        return ids, supervised

    def _canvas(self, store: ImageStore, name: str, max_tiles: int) -> Canvas:
        width, height = image_size(store, name, self.config.max_image_pixels)
        return choose_canvas(width, height, self.assets.tile_size, max_tiles)

    def _no_tiles(self) -> np.ndarray:
        size = self.assets.tile_size
        return np.zeros((0, 3, size, size), dtype=np.uint8)


def _resize_fast(image: Image.Image, width: int, height: int) -> torch.Tensor:
    return resize_bilinear(image_pixels(image), width, height)
