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
) -> Tensor:
    """Make the codes.

    Args:
        image_spans: int64[i, 2], [start, end) of each image, in order of the samples.
        tiles_per_image: int64[i].
        images_per_sample: int64[b], in host memory; the sum is i, which is not 0.
        text_length: s.
        max_num_tiles: tile slots of an image.

    Returns:
        int8[b, s, images * slots] with the images of the sample that has most.
    """
    device = image_spans.device
    places = torch.arange(text_length, device=device)
    within = (places >= image_spans[:, :1]) & (places < image_spans[:, 1:])  # [i, s]
    filled = torch.arange(max_num_tiles, device=device) < tiles_per_image.to(device).unsqueeze(1)
    shown = within.unsqueeze(-1) & filled.unsqueeze(1)  # [i, s, slots]
    counts = images_per_sample.tolist()
    shown = pad_sequence(list(shown.split(counts)), batch_first=True)  # [b, images, s, slots]
    shown = shown.transpose(1, 2).flatten(2)
    outside = ~shown.any(dim=-1, keepdim=True)  # [b, s, 1]
    own = torch.arange(shown.shape[-1], device=device) // max_num_tiles
    own = own < images_per_sample.to(device).unsqueeze(1)  # [b, images * slots]
    codes = torch.full(shown.shape, HIDDEN, dtype=torch.int8, device=device)
    codes[outside & own.unsqueeze(1)] = SHOWN_TO_OUTSIDERS
    codes[shown] = SHOWN
    return codes
