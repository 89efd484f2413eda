"""The tiles of the NVILA-Lite family, written to where a sample has them.

Which grid an image gets is decided by models/hf_code/tiling_nvila_lite.py alone.
"""

import numpy as np
from PIL import Image

from datamodules.image_resize import cut_rows, image_pixels, resize_bicubic
from models.hf_code.tiling_nvila_lite import choose_grid, cut_tiles


def fill_tiles(tiles: np.ndarray, image: Image.Image, max_tiles: int) -> None:
    """Cuts an image into tiles, its thumbnail last, resizing the fast way.

    Args:
        tiles: uint8 [tiles, 3, side, side] of this image, which are written.
        image: An RGB image.
        max_tiles: Largest number of tiles, the thumbnail not counted.
    """
    side = tiles.shape[2]
    columns, rows = choose_grid(image.width, image.height, side, max_tiles)
    in_grid = columns * rows
    assert len(tiles) == in_grid + (in_grid > 1), f"{columns} x {rows} tiles, not {len(tiles)}"
    pixels = image_pixels(image)
    cut_rows(resize_bicubic(pixels, columns * side, rows * side), tiles[:in_grid])
    if in_grid > 1:
        cut_rows(resize_bicubic(pixels, side, side), tiles[in_grid:])


def fill_tiles_exactly(tiles: np.ndarray, image: Image.Image, max_tiles: int) -> None:
    """Does the same with the pixels that the exported model's processor makes."""
    cut = cut_tiles(image, tiles.shape[2], max_tiles)
    assert len(cut) == len(tiles), f"{len(cut)} tiles, not {len(tiles)}"
    tiles[:] = cut
