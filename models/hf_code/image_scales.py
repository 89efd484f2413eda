"""An image seen at two scales: its quarters at full size, and the whole of it at half the size."""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

# One scale, or those of Scaling on Scales (Shi et al. 2024) that LLaVA-JP v1.1 has.
SCALES = ((1.0,), (1.0, 0.5))


# What a tower encodes of one image at two scales: four quarters, and the whole.
IMAGES_AT_TWO_SCALES = 5


def check_scales(scales: Sequence[float]) -> None:
    """Refuses scales that ``at_two_scales`` does not have.

    Args:
        scales: Sizes as parts of an image's size.

    Raises:
        ValueError: If they are others.
    """
    if tuple(scales) not in SCALES:
        raise ValueError(
            f"image_scales: {list(scales)!r} are not supported; allowed are "
            f"{' and '.join(str(list(one)) for one in SCALES)}."
        )


def grid_of(features: int) -> tuple[int, int]:
    """Returns rows and columns of so many features of an image, row by row.

    The published LLaVA-JP leaves the first of SigLIP's 27 x 27 patches out and takes the other 728
    for 26 rows of 28.

    Args:
        features: Their number.

    Raises:
        ValueError: If they make no rectangle.
    """
    rows = math.isqrt(features)
    if features % rows:
        raise ValueError(
            f"{features} features of an image make no rectangle, which two scales need: with a "
            "class token, leave it out"
        )
    return rows, features // rows


def at_two_scales(
    encode: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor
) -> torch.Tensor:
    """Encodes images at the scales 1 and 0.5.

    The features of the quarters, laid together and averaged over blocks of 2 x 2, stand before
    those of the small image, channel behind channel.

    Args:
        encode: Maps [images, 3, side, side] to [images, features, channels].
        pixels: Normalised images, [images, 3, 2 * side, 2 * side].

    Returns:
        [images, features, 2 * channels].
    """
    images, _, height, _ = pixels.shape
    side = height // 2
    small = functional.interpolate(pixels.float(), size=side, mode="bicubic").to(pixels.dtype)
    # [images, 3, row, y, column, x] -> one quarter behind another.
    quarters = pixels.unflatten(3, (2, side)).unflatten(2, (2, side)).permute(2, 4, 0, 1, 3, 5)
    encoded = encode(torch.cat([quarters.flatten(0, 2), small]))
    rows, columns = grid_of(encoded.shape[1])
    fine, coarse = encoded[: 4 * images], encoded[4 * images :]
    # [row, column, images, y, x, channels] -> [images, row, y, column, x, channels]: laid together,
    # whose blocks of 2 x 2 are the neighbours of the coarse grid.
    laid = fine.unflatten(0, (2, 2, images)).unflatten(3, (rows, columns))
    laid = laid.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
    blocks = laid.float().unflatten(2, (columns, 2)).unflatten(1, (rows, 2))
    averaged = blocks.mean(dim=(2, 4)).flatten(1, 2).to(encoded.dtype)
    return torch.cat([averaged, coarse], dim=-1)
