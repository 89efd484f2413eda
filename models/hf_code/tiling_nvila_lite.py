"""Dynamic tiling: an image becomes a grid of square tiles and a thumbnail.

The rule is the one of InternVL, which NVILA took over: of all grids of at most ``max_tiles`` tiles
take the one whose aspect ratio is nearest to the image's, resize the whole image to that grid
(the aspect ratio is not kept), cut it row by row, and append the whole image as one more tile when
there is more than one.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

# Tiles are normalised as (x / 255 - PIXEL_MEAN) / PIXEL_STD, the same for every channel.
PIXEL_MEAN = 0.5
PIXEL_STD = 0.5


@lru_cache(maxsize=64)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Lists the (columns, rows) grids of ``min_tiles`` to ``max_tiles`` tiles, smallest first.

    Raises:
        ValueError: If the bounds are not 1 <= min_tiles <= max_tiles.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(
            f"max_tiles={max_tiles} with min_tiles={min_tiles} is not allowed: "
            "1 <= min_tiles <= max_tiles must hold"
        )
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)))


def choose_grid(
    width: int, height: int, tile_size: int, max_tiles: int, min_tiles: int = 1
) -> tuple[int, int]:
    """Chooses the tile grid of an image.

    The smallest difference of the aspect ratios wins. When a larger grid has exactly the same
    difference, it wins if the image has more than half of the pixels of that grid.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        tile_size: Side of a tile in pixels.
        max_tiles: Largest number of tiles, the thumbnail not counted.
        min_tiles: Smallest number of tiles.

    Returns:
        (columns, rows).

    Raises:
        ValueError: If the image has no pixels or the bounds are not in order.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width}x{height} pixels cannot be tiled: it has no pixels")
    aspect_ratio = width / height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in candidate_grids(min_tiles, max_tiles):
        difference = abs(aspect_ratio - columns / rows)
        # Floats are compared on purpose: a tie is a tie of the published arithmetic.
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif (
            difference == best_difference
            and width * height > 0.5 * tile_size * tile_size * columns * rows
        ):
            best = (columns, rows)
    return best


def tile_count(width: int, height: int, tile_size: int, max_tiles: int) -> int:
    """Counts the tiles that an image of this size becomes, the thumbnail included."""
    columns, rows = choose_grid(width, height, tile_size, max_tiles)
    return columns * rows + (columns * rows > 1)


def cut_tiles(image: Image.Image, tile_size: int, max_tiles: int) -> np.ndarray:
    """Cuts an image into tiles, row by row from the top left, the thumbnail last.

    Args:
        image: Any PIL image; it is converted to RGB.
        tile_size: Side of a tile in pixels.
        max_tiles: Largest number of tiles, the thumbnail not counted.

    Returns:
        uint8 [tiles, 3, tile_size, tile_size].
    """
    image = image.convert("RGB")
    columns, rows = choose_grid(image.width, image.height, tile_size, max_tiles)
    grid = _resized(image, columns * tile_size, rows * tile_size)
    tiles = grid.reshape(rows, tile_size, columns, tile_size, 3).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(rows * columns, 3, tile_size, tile_size)
    if rows * columns > 1:
        thumbnail = _resized(image, tile_size, tile_size).transpose(2, 0, 1)
        tiles = np.concatenate([tiles, thumbnail[None]])
    return np.ascontiguousarray(tiles)


def _resized(image: Image.Image, width: int, height: int) -> np.ndarray:
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
