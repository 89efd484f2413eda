"""Samples of the LLaVA family: every image takes the same number of positions of the text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.conversation import shifted_labels, tokenize_conversation
from datamodules.document import cut_position, tokenize_document
from datamodules.encoder import EncodingPlan, learnt_answers, placeholders
from datamodules.image_slot_collate import ImageSlotSample
from datamodules.image_slot_encoder import ImageSlotEncoder
from datamodules.images import ImageStore, decode_image, image_size
from datamodules.llava_assets import IMAGE_TEXT, LlavaAssets, load_llava_assets
from sample_loaders.conversation import ConversationSample, Turn
from sample_loaders.document import DocumentSample
from sample_loaders.errors import BadSample, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaPlan(EncodingPlan):
    """A sample whose positions are all known while no image is decoded.

    Attributes:
        images: Names of the images to decode, in the order of their positions.
    """

    images: tuple[str, ...]

    @property
    def tiles(self) -> int:
        """Number of images; each is one tile."""
        return len(self.images)


class LlavaEncoder(ImageSlotEncoder[LlavaAssets, LlavaPlan]):
    """Encodes conversations for models of the LLaVA family.

    Images stand at the front of their turn. A sample that is too long loses whole questions with
    their answers, and the images in them, from the end; a document loses its end. Half an image or
    half a turn never goes in.

    Args:
        config: How to encode; `max_tiles` has no meaning here.
    """

    def decode(self, plan: LlavaPlan, images: ImageStore | None = None) -> ImageSlotSample:
        """Adds the pixels to a plan.

        Raises:
            BadSample: An image is damaged.
        """
        store, squares = self._store(images), self.assets.images
        fill = squares.fill_exactly if self.config.image_resize == "exact" else squares.fill
        tiles = np.empty((plan.tiles, 3, squares.side, squares.side), dtype=np.uint8)
        for tile, name in zip(tiles, plan.images, strict=True):
            fill(tile, decode_image(store, name, self.config.max_image_pixels))
        return ImageSlotSample(key=plan.key, tokens=plan.tokens, labels=plan.labels, tiles=tiles)

    def _load_assets(self) -> LlavaAssets:
        return load_llava_assets(self.config.assets, self.config.conversation_template)

    def _plan(self, sample: ConversationSample, store: ImageStore) -> LlavaPlan:
        turns: Sequence[Turn] = sample.turns
        while True:
            tokens, supervised = self._tokenize(sample, turns)
            images = sample.images[: placeholders(turns)]
            if self.fits(len(tokens), len(images)):
                break
            turns = self._without_last_answer(
                sample, turns, f"{self.assets.slots_per_image} positions per image"
            )
        self._look_at(images, store)
        return LlavaPlan(
            key=sample.key, tokens=tokens, labels=shifted_labels(tokens, supervised), images=images
        )

    def _plan_document(self, sample: DocumentSample, store: ImageStore) -> LlavaPlan:
        ids, supervised = tokenize_document(sample.text, self.assets.tokenizer, IMAGE_TEXT)
        tokens, origin = self._expand(ids)
        width = self.assets.slots_per_image
        (places,) = np.nonzero(ids == self.assets.image_token_id)
        starts = np.searchsorted(origin, places)
        spans = [(int(start), int(start) + width) for start in starts]
        end = cut_position(len(tokens), self.config.seq_length, spans)
        kept = sum(stop <= end for _, stop in spans)
        while not self.fits(end, kept):
            kept -= 1
            end = spans[kept][0]
        self._look_at(sample.images[:kept], store)
        return LlavaPlan(
            key=sample.key,
            tokens=tokens[:end],
            labels=shifted_labels(tokens[:end], supervised[origin][:end]),
            images=sample.images[:kept],
        )

    def _look_at(self, images: Sequence[str], store: ImageStore) -> None:
        """Reads the headers, so that what is missing or too large is known before all is planned.

        Raises:
            BadSample: An image is missing, no image or too large.
        """
        for name in images:
            image_size(store, name, self.config.max_image_pixels)

    def _tokenize(
        self, sample: ConversationSample, turns: Sequence[Turn]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids int64 [length] of these turns, and whether each is learnt."""
        assets = self.assets
        messages = [assets.message(turn.role, turn.text) for turn in turns]
        rendered = learnt_answers(sample, assets.template.render(messages))
        ids, supervised = tokenize_conversation(rendered, assets.tokenizer, IMAGE_TEXT)
        found, wanted = int((ids == assets.image_token_id).sum()), placeholders(turns)
        if found != wanted:
            raise BadSample(
                Reason.TEMPLATE_CHANGES,
                f"The template prints {found} of the {wanted} images of the conversation.",
            )
        tokens, origin = self._expand(ids)
        return tokens, supervised[origin]

    def _expand(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gives every image its positions.

        Returns:
            The ids int64 [longer], and the position int64 [longer] in `ids` that each came from.
        """
        widths = np.where(ids == self.assets.image_token_id, self.assets.slots_per_image, 1)
        origin = np.repeat(np.arange(len(ids)), widths)
        return ids[origin], origin
