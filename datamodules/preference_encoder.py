"""Preferences for models with image slots: each sample is a pair of conversations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from datamodules.encoder import EncodingPlan
from datamodules.image_slot_collate import ImageSlotCollator, ImageSlotSample
from datamodules.image_slot_encoder import ImageSlotEncoder
from datamodules.images import ImageStore
from sample_loaders.document import Sample as RawSample
from sample_loaders.errors import BadSample, Reason
from sample_loaders.preference import PreferenceSample


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan(EncodingPlan):
    """Both conversations of a preference; `tokens` and `labels` are those of both.

    Attributes:
        chosen: With the chosen answer.
        rejected: With the rejected one, and the same images.
    """

    chosen: EncodingPlan
    rejected: EncodingPlan

    @property
    def tiles(self) -> int:
        """Number of tiles of both."""
        return self.chosen.tiles + self.rejected.tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPair:
    """A preference ready for collation.

    Attributes:
        key: The sample's key.
        chosen: The conversation with the chosen answer, in which nothing else is learnt.
        rejected: The same with the rejected answer.
    """

    key: str
    chosen: ImageSlotSample
    rejected: ImageSlotSample

    @property
    def tokens(self) -> np.ndarray:
        """Token ids int64 [length] of both."""
        return np.concatenate([self.chosen.tokens, self.rejected.tokens])

    @property
    def labels(self) -> np.ndarray:
        """int64 [length] of both, each shifted; -100 where nothing is learnt."""
        return np.concatenate([self.chosen.labels, self.rejected.labels])


class PreferenceEncoder:
    """Encodes preferences with the encoder of a model family.

    A pair counts as one sample. Each of its conversations may have `seq_length` positions and the
    tiles of a sample; nothing of them is cut off.

    Args:
        encoder: Of the family.
    """

    def __init__(self, encoder: ImageSlotEncoder[Any, Any]) -> None:
        self._encoder = encoder

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows of a batch."""
        return self._encoder.pad_token_id

    def prepare(self) -> None:
        """Reads the assets, so that their errors come before any worker starts.

        Raises:
            ValueError: The assets do not suit.
        """
        self._encoder.prepare()

    def encode(self, sample: RawSample, images: ImageStore | None = None) -> EncodedPair:
        """Encodes a sample.

        Raises:
            BadSample: The sample cannot be used.
        """
        return self.decode(self.plan(sample, images), images)

    def plan(self, sample: RawSample, images: ImageStore | None = None) -> PairPlan:
        """Does everything that needs no pixels.

        Raises:
            BadSample: The sample cannot be used, or is no preference.
        """
        if not isinstance(sample, PreferenceSample):
            raise BadSample(
                Reason.MISSING_KEY,
                'The record is no preference: a question, and "chosen" and "rejected" answers.',
            )
        chosen, rejected = self._encoder.plan_alike(sample.conversations(), images)
        return PairPlan(
            key=sample.key,
            tokens=np.concatenate([chosen.tokens, rejected.tokens]),
            labels=np.concatenate([chosen.labels, rejected.labels]),
            chosen=chosen,
            rejected=rejected,
        )

    def decode(self, plan: PairPlan, images: ImageStore | None = None) -> EncodedPair:
        """Adds the pixels to a plan.

        Raises:
            BadSample: An image is damaged.
        """
        chosen = self._encoder.decode(plan.chosen, images)
        # The images are the same, and decoding them is most of the work.
        rejected = replace(chosen, tokens=plan.rejected.tokens, labels=plan.rejected.labels)
        return EncodedPair(key=plan.key, chosen=chosen, rejected=rejected)

    def length(self, sample: RawSample, images: ImageStore | None = None) -> int:
        """Returns the number of positions of both conversations.

        Raises:
            BadSample: The sample cannot be used.
        """
        return self.plan(sample, images).length

    def filler(self, key: str) -> EncodedPair:
        """Makes a pair of samples of one pad token, without label and image."""
        half = self._encoder.filler(key)
        return EncodedPair(key=key, chosen=half, rejected=half)

    def collator(self, pad_to_multiple_of: int, fixed_length: int | None) -> "PairCollator":
        """Makes what joins pairs to micro-batches."""
        rows = self._encoder.collator(pad_to_multiple_of, fixed_length)
        packed_length = None if fixed_length is None else 2 * fixed_length
        return PairCollator(
            rows=rows, packed_rows=self._encoder.collator(pad_to_multiple_of, packed_length)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCollator:
    """Joins pairs: n of them are 2 n sequences, a chosen one before its rejected one.

    Attributes:
        rows: Of conversations, one in each row.
        packed_rows: Of several pairs in each row, which has room for twice as much.
    """

    rows: ImageSlotCollator
    packed_rows: ImageSlotCollator

    def __call__(self, samples: Sequence[EncodedPair]) -> dict[str, Any]:
        """Builds a micro-batch.

        Returns:
            As of `ImageSlotCollator` with 2 n rows; sample_keys list[str] has one key for a pair,
            and answer_sequences int64 [2 n] says which sequence each answer is in: here its row.
        """
        batch = self.rows(_flat(samples))
        return _of_pairs(batch, samples, range(2 * len(samples)))

    def packed(self, rows: Sequence[Sequence[EncodedPair]]) -> dict[str, Any]:
        """Builds a micro-batch of packed rows, in which conversations are sequences.

        Returns:
            As of `ImageSlotCollator.packed`, with the keys and the sequences of the pairs.
        """
        batch, sequences = self.packed_rows.packed_with_sequences([_flat(row) for row in rows])
        return _of_pairs(batch, [pair for row in rows for pair in row], sequences)


def _flat(pairs: Sequence[EncodedPair]) -> list[ImageSlotSample]:
    return [one for pair in pairs for one in (pair.chosen, pair.rejected)]


def _of_pairs(
    batch: dict[str, Any], pairs: Sequence[EncodedPair], sequences: Sequence[int]
) -> dict[str, Any]:
    return batch | {
        "sample_keys": [pair.key for pair in pairs],
        "answer_sequences": torch.tensor(sequences, dtype=torch.int64),
    }
