"""Tiling: an image is fitted into a canvas of square tiles, its aspect ratio kept.

Of all canvases of at most `max_tiles` tiles the one is taken that enlarges the image least; if all
of them are too small, the one that shrinks it least. The image is never enlarged beyond one tile's
side or its own size, stands in the upper left corner, and the rest is padding. All of it follows
transformers' MllamaImageProcessor bit by bit, floating point arithmetic included.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

# Resizes an RGB image to a width and a height: uint8 [height, 3, width].
Resize = Callable[[Image.Image, int, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Canvas:
    """A grid of tiles."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.rows * self.columns


@lru_cache(maxsize=16)
def supported_canvases(max_tiles: int) -> tuple[Canvas, ...]:
    """Lists all canvases of at most `max_tiles` tiles, in the order of their ids.

    Raises:
        ValueError: `max_tiles` is below one.
    """
    if max_tiles < 1:
        raise ValueError(f"max_tiles is {max_tiles}, but must be at least 1.")
    return tuple(
        Canvas(rows, columns)
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles // rows + 1)
    )


def aspect_ratio_id(canvas: Canvas, model_max_tiles: int) -> int:
    """Returns the id that the model knows a canvas by.

    Args:
        canvas: The canvas.
        model_max_tiles: The bound that the model was built with, not a smaller one of the data:
            the ids count the canvases that the model has embeddings for. Id 0 is padding.
    """
    return supported_canvases(model_max_tiles).index(canvas) + 1


def choose_canvas(width: int, height: int, tile_size: int, max_tiles: int) -> Canvas:
    """Chooses the canvas of an image from its size alone.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        tile_size: Side of a tile in pixels.
        max_tiles: Largest number of tiles.

    Raises:
        ValueError: The image has no pixels, or `max_tiles` is below one.
    """
    if width < 1 or height < 1:
        raise ValueError(f"An image of {width} x {height} pixels cannot be tiled: it has none.")
    scales = {
        canvas: min(canvas.rows * tile_size / height, canvas.columns * tile_size / width)
        for canvas in supported_canvases(max_tiles)
    }
    enlarging = [scale for scale in scales.values() if scale >= 1]
    best = min(enlarging) if enlarging else max(scales.values())
    # Of canvases with the same scale the smallest pads least; min takes the first of equals.
    return min((c for c, scale in scales.items() if scale == best), key=lambda c: c.tiles)


def fitted_size(width: int, height: int, tile_size: int, canvas: Canvas) -> tuple[int, int]:
    """Returns the width and height in pixels that an image is resized to on its canvas."""
    wanted_width = min(max(width, tile_size), canvas.columns * tile_size)
    wanted_height = min(max(height, tile_size), canvas.rows * tile_size)
    scale_width, scale_height = wanted_width / width, wanted_height / height
    if scale_width < scale_height:
        return wanted_width, min(math.floor(height * scale_width) or 1, wanted_height)
    return min(math.floor(width * scale_height) or 1, wanted_width), wanted_height


def on_white(image: Image.Image) -> Image.Image:
    """Converts an image to RGB, with white where it is transparent."""
    if image.mode == "RGB":
        return image
    opaque = image.convert("RGBA")
    white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, opaque).convert("RGB")


def resize_exactly(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """Resizes as the published processor does.

    Returns:
        uint8 [height, 3, width].
    """
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(0, 2, 1)


def cut_tiles(
    image: Image.Image, tile_size: int, max_tiles: int, resize: Resize = resize_exactly
) -> np.ndarray:
    """Cuts an image into the tiles of its canvas, row by row from the upper left.

    Args:
        image: Any PIL image.
        tile_size: Side of a tile in pixels.
        max_tiles: Largest number of tiles.
        resize: Gives the image another size.

    Returns:
        uint8 [tiles, 3, tile_size, tile_size]; padding is 0.
    """
    image = on_white(image)
    canvas = choose_canvas(image.width, image.height, tile_size, max_tiles)
    width, height = fitted_size(image.width, image.height, tile_size, canvas)
    # Colours are sorted row by row: a whole image at once would leave the cache.
    pixels = torch.zeros(canvas.rows * tile_size, 3, canvas.columns * tile_size, dtype=torch.uint8)
    pixels[:height, :, :width] = resize(image, width, height)
    grid = pixels.view(canvas.rows, tile_size, 3, canvas.columns, tile_size)
    tiles = grid.permute(0, 3, 2, 1, 4).contiguous()
    return tiles.view(canvas.tiles, 3, tile_size, tile_size).numpy()
