"""Which tiles each position of the text looks at, tile by tile.

Hugging Face's semantics, sample by sample: a position sees the images whose span holds it, in the
tiles that these images fill. A position that no span holds (text before the first image) has its
whole mask taken away there, so it attends to every tile slot of the sample's images, padding
included, while its MLP branch is off. A sample without images sees nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

HIDDEN, SHOWN, SHOWN_TO_OUTSIDERS = 0, 1, 2
"""Codes of a tile for a position; the last: shown to a position that no image's span holds."""


def tile_visibility(
    image_spans: Tensor,
    tiles_per_image: Tensor,
    images_per_sample: Tensor,
    text_length: int,
    max_num_tiles: int,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Make the codes.

    Args:
        image_spans: int64[i, 2], [start, end) of each image in its row, in order of the samples.
        tiles_per_image: int64[i].
        images_per_sample: int64[b], in host memory; the sum is i, which is not 0. Of packed rows:
            int64[n], of every sequence.
        text_length: s.
        max_num_tiles: tile slots of an image.
        cu_seqlens: int32[n + 1], where the sequences of packed rows begin; b is then 1.

    Returns:
        int8[b, s, images * slots] with the images of the row that has most.
    """
    device = image_spans.device
    places = torch.arange(text_length, device=device)
    within = (places >= image_spans[:, :1]) & (places < image_spans[:, 1:])  # [i, s]
    filled = torch.arange(max_num_tiles, device=device) < tiles_per_image.to(device).unsqueeze(1)
    shown = within.unsqueeze(-1) & filled.unsqueeze(1)  # [i, s, slots]
    counts = images_per_row(images_per_sample, cu_seqlens).tolist()
    shown = pad_sequence(list(shown.split(counts)), batch_first=True)  # [b, images, s, slots]
    shown = shown.transpose(1, 2).flatten(2)
    outside = ~shown.any(dim=-1, keepdim=True)  # [b, s, 1]
    own = _own_images(images_per_sample, cu_seqlens, text_length, device)  # [b, s or 1, images]
    own = own.repeat_interleave(max_num_tiles, dim=-1)
    codes = torch.full(shown.shape, HIDDEN, dtype=torch.int8, device=device)
    codes[outside & own] = SHOWN_TO_OUTSIDERS
    codes[shown] = SHOWN
    return codes


def images_per_row(images_per_sample: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """int64 -> int64[b]: all sequences of packed rows are in the one row of the batch."""
    return images_per_sample if cu_seqlens is None else images_per_sample.sum().unsqueeze(0)


def _own_images(
    images_per_sample: Tensor, cu_seqlens: Tensor | None, text_length: int, device: torch.device
) -> Tensor:
    """bool[b, s or 1, images]: which of a row's images belong to the sample at each position."""
    counts = images_per_sample.to(device)
    if cu_seqlens is None:
        images = torch.arange(int(images_per_sample.max()), device=device)
        return (images < counts.unsqueeze(1)).unsqueeze(1)
    lengths = cu_seqlens.diff().to(torch.int64)
    samples = torch.arange(len(lengths), device=device)
    sample_of_image = samples.repeat_interleave(counts, output_size=int(images_per_sample.sum()))
    sample_of_place = samples.repeat_interleave(lengths, output_size=text_length)
    return (sample_of_place.unsqueeze(1) == sample_of_image).unsqueeze(0)
