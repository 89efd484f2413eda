"""Micro-batches of the MLlama family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from datamodules.collate import TextRows, joined


@dataclass(frozen=True, slots=True, kw_only=True)
class MllamaSample:
    """A sample ready for collation, of i images in t tiles.

    Attributes:
        key: The sample's key.
        tokens: int64 [length]; every image has one position, which holds the image id.
        labels: int64 [length], already shifted; -100 where nothing is learnt.
        tiles: uint8 [t, 3, H, W], real tiles only, of all images in order; t may be 0.
        tiles_per_image: int64 [i].
        aspect_ratio_ids: int64 [i], the canvas of each image as the model counts them from 1.
        image_spans: int64 [i, 2], the positions [start, end) that attend to each image.
    """

    key: str
    tokens: np.ndarray
    labels: np.ndarray
    tiles: np.ndarray
    tiles_per_image: np.ndarray
    aspect_ratio_ids: np.ndarray
    image_spans: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class MllamaCollator(TextRows):
    """Joins samples: their text as rows, and what belongs to images one after the other."""

    def __call__(self, samples: Sequence[MllamaSample]) -> dict[str, Any]:
        """Builds a micro-batch of b samples with i images in t tiles in all.

        Returns:
            The text as `TextRows.join` gives it, and, of all samples in order: tiles uint8
            [t, 3, H, W]; tiles_per_image int64 [i]; aspect_ratio_ids int64 [i]; image_spans int64
            [i, 2], in positions of the image's own row; and images_per_sample int64 [b].
        """
        images = torch.tensor([len(sample.tiles_per_image) for sample in samples])
        return {**self.join(samples), **_joined(samples), "images_per_sample": images}

    def packed(self, rows: Sequence[Sequence[MllamaSample]]) -> dict[str, Any]:
        """Builds a micro-batch of packed rows, of n sequences with i images in t tiles in all.

        Returns:
            The text as `TextRows.pack` gives it, and, of all samples in order, the images as
            `__call__` gives them, but for: image_spans int64 [i, 2], in positions of the one row;
            and images_per_sample int64 [n], of every sequence.
        """
        text, sequences = self.pack(rows)
        samples = [sample for row in rows for sample in row]
        images_of_row = _joined(samples)
        images = torch.zeros(len(text["cu_seqlens"]) - 1, dtype=torch.int64)
        for sequence, sample in zip(sequences, samples, strict=True):
            images[sequence] = len(sample.tiles_per_image)
        starts = text["cu_seqlens"][:-1].to(torch.int64).repeat_interleave(images)
        images_of_row["image_spans"] = images_of_row["image_spans"] + starts[:, None]
        return {**text, **images_of_row, "images_per_sample": images}


def _joined(samples: Sequence[MllamaSample]) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(joined([getattr(sample, name) for sample in samples]))
        for name in ("tiles", "tiles_per_image", "aspect_ratio_ids", "image_spans")
    }
