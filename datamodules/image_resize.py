"""How images get their new size: exactly as Pillow does it, or faster and nearly so.

The fast way is torch's resize of integers. It rounds the weights of the filter to 16 bits, which
moves a pixel by at most two of 255 levels (docs/decisions/0008-image-resize.md). One call of it
spends most of its time on sorting the colours of the result into planes. So the two passes are
called one by one, and the colours are sorted between them, where the image is smaller: the
horizontal pass takes pixels of three colours side by side, and to the vertical pass, which joins
no neighbours in a row, any four bytes side by side are a pixel. Every bit is that of one call.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

ImageResize = Literal["exact", "fast"]

_Filter = Callable[..., torch.Tensor]
_LANES = 4  # bytes of a pixel that torch's resize works on at once


def check_image_resize(value: str) -> None:
    """Checks the option of the data modules.

    Raises:
        ValueError: There is no such way.
    """
    if value not in get_args(ImageResize):
        raise ValueError(f"image_resize is {value!r}, but must be 'exact' or 'fast'.")


def image_pixels(image: Image.Image) -> torch.Tensor:
    """Returns the pixels of an RGB image, uint8 [H, W, 3]."""
    return torch.from_numpy(np.array(image))


def resize_bicubic(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resizes as Pillow's bicubic filter does, in integers.

    Args:
        pixels: uint8 [H, W, 3].
        width: The new width in pixels.
        height: The new height in pixels.

    Returns:
        uint8 [height, 3, width], which may be a view.
    """
    return _resize(pixels, width, height, torch.ops.aten._upsample_bicubic2d_aa.out)


def resize_bilinear(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resizes as Pillow's bilinear filter does, in integers; see `resize_bicubic`."""
    return _resize(pixels, width, height, torch.ops.aten._upsample_bilinear2d_aa.out)


def cut_rows(rows: torch.Tensor, tiles: np.ndarray) -> None:
    """Cuts a whole grid into tiles, row by row from the upper left.

    Args:
        rows: uint8 [grid height, 3, grid width].
        tiles: uint8 [tiles, 3, side, side], which is filled.
    """
    side = tiles.shape[2]
    height, _, width = rows.shape
    grid = rows.reshape(height // side, side, 3, width // side, side).permute(0, 3, 2, 1, 4)
    torch.from_numpy(tiles).view(grid.shape).copy_(grid)


def _resize(pixels: torch.Tensor, width: int, height: int, resample: _Filter) -> torch.Tensor:
    if pixels.shape[:2] == (height, width):
        return pixels.permute(0, 2, 1)
    old_height = pixels.shape[0]
    wide = _resample(pixels, width, old_height, resample)
    length = 3 * width
    padded = -(-length // _LANES) * _LANES
    # What pads a row is never read: no column of the vertical pass depends on another.
    rows = torch.empty(old_height, padded, dtype=torch.uint8)
    rows[:, :length].view(old_height, 3, width).copy_(wide.permute(0, 2, 1))
    tall = _resample(
        rows.view(old_height, padded // _LANES, _LANES), padded // _LANES, height, resample
    )
    return tall.view(height, padded)[:, :length].view(height, 3, width)


def _resample(pixels: torch.Tensor, width: int, height: int, resample: _Filter) -> torch.Tensor:
    """Resizes uint8 [H, W, C] to [height, width, C]."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = torch.empty(height, width, pixels.shape[2], dtype=torch.uint8)
    # The public function gives planes, whatever it is given.
    resample(
        pixels.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last),
        [height, width],
        False,
        None,
        None,
        out=resized[None].permute(0, 3, 1, 2),
    )
    return resized
