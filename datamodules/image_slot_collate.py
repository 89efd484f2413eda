"""Micro-batches of models whose tokens have a slot for each vector of an image (NVILA, LLaVA)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from datamodules.collate import TextRows, joined


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSlotSample:
    """A sample ready for collation.

    Attributes:
        key: The sample's key.
        tokens: int64 [length]; image positions hold the image id.
        labels: int64 [length], already shifted; -100 where nothing is learnt.
        tiles: uint8 [n, 3, H, W] in the order of their positions; n may be 0.
    """

    key: str
    tokens: np.ndarray
    labels: np.ndarray
    tiles: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSlotCollator(TextRows):
    """Joins samples: their text as rows, and their tiles one after the other."""

    def __call__(self, samples: Sequence[ImageSlotSample]) -> dict[str, Any]:
        """Builds a micro-batch.

        Returns:
            The text as `TextRows.join` gives it, and tiles uint8 [n, 3, H, W], of all samples in
            order.
        """
        return {**self.join(samples), "tiles": _tiles(samples)}

    def packed(self, rows: Sequence[Sequence[ImageSlotSample]]) -> dict[str, Any]:
        """Builds a micro-batch of packed rows.

        Returns:
            The text as `TextRows.pack` gives it, and tiles uint8 [n, 3, H, W], of all samples in
            order.
        """
        return self.packed_with_sequences(rows)[0]

    def packed_with_sequences(
        self, rows: Sequence[Sequence[ImageSlotSample]]
    ) -> tuple[dict[str, Any], list[int]]:
        """Builds a micro-batch as `packed`, and says which sequence each sample is."""
        text, sequences = self.pack(rows)
        tiles = _tiles([sample for row in rows for sample in row])
        return {**text, "tiles": tiles}, sequences


def _tiles(samples: Sequence[ImageSlotSample]) -> torch.Tensor:
    return torch.from_numpy(joined([sample.tiles for sample in samples]))
