"""Tiles against transformers' own image processor, without its scaling: every bit must be equal."""

import numpy as np
import pytest
from PIL import Image
from transformers import MllamaConfig, MllamaImageProcessor

from models.mllama.tiling import (
    Canvas,
    aspect_ratio_id,
    choose_canvas,
    cut_tiles,
    fitted_size,
    supported_canvases,
)

SIDES = [1, 2, 5, 13, 14, 15, 27, 28, 29, 41, 56, 57, 84, 85, 112, 113, 200, 331]
SETTINGS = [(14, 4), (28, 4), (28, 1), (20, 6), (28, 12)]


def noise(width, height, mode="RGB"):
    channels = len(Image.new(mode, (1, 1)).getbands())
    generator = np.random.default_rng(width * 1000 + height)
    pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode)


def published(image, tile_size, max_tiles):
    """Tiles, their number and the aspect ratio id by MllamaImageProcessor."""
    processor = MllamaImageProcessor(
        size={"height": tile_size, "width": tile_size},
        max_image_tiles=max_tiles,
        do_rescale=False,
        do_normalize=False,
    )
    output = processor(image)
    tiles = output["num_tiles"][0][0]
    pixels = output["pixel_values"][0, 0]
    assert not pixels[tiles:].any()
    return pixels[:tiles], tiles, output["aspect_ratio_ids"][0, 0]


@pytest.mark.parametrize(("tile_size", "max_tiles"), SETTINGS)
def test_tiles_are_those_of_the_published_processor(tile_size, max_tiles):
    shapes = set()
    for width in SIDES:
        for height in SIDES:
            image = noise(width, height)
            expected, tiles, ratio = published(image, tile_size, max_tiles)
            found = cut_tiles(image, tile_size, max_tiles)
            canvas = choose_canvas(width, height, tile_size, max_tiles)
            assert found.dtype == np.uint8
            assert found.shape == (tiles, 3, tile_size, tile_size)
            assert found.flags.c_contiguous
            assert (found == expected).all(), (width, height)
            assert canvas.tiles == tiles
            assert aspect_ratio_id(canvas, max_tiles) == ratio
            shapes.add(ratio)
    # Every canvas was met; the longest of 12 tiles need longer sides.
    assert len(shapes) == (29 if max_tiles == 12 else len(supported_canvases(max_tiles)))


def test_real_size():
    for size in [(560, 560), (1120, 1120), (1121, 480), (100, 3000), (2500, 1600)]:
        image = noise(*size)
        expected, tiles, _ = published(image, 560, 4)
        assert (cut_tiles(image, 560, 4) == expected).all()
        assert choose_canvas(*size, 560, 4).tiles == tiles


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "YCbCr"])
def test_other_colour_modes(mode):
    image = noise(40, 30, mode)
    assert (cut_tiles(image, 28, 4) == published(image, 28, 4)[0]).all()


def test_palette_with_transparency():
    image = noise(40, 30).quantize(7)
    image.info["transparency"] = 3
    assert (cut_tiles(image, 28, 4) == published(image, 28, 4)[0]).all()


def test_transparent_is_white():
    image = Image.new("RGBA", (28, 28), (255, 0, 0, 0))
    assert (cut_tiles(image, 28, 4) == 255).all()


@pytest.mark.parametrize(
    ("width", "height", "canvas", "size"),
    [
        (10, 10, Canvas(1, 1), (28, 28)),  # enlarged to one tile, no further
        (28, 28, Canvas(1, 1), (28, 28)),
        (29, 28, Canvas(1, 2), (29, 28)),  # fits only on two tiles, and keeps its size there
        (56, 56, Canvas(2, 2), (56, 56)),
        (1000, 1000, Canvas(2, 2), (56, 56)),
        (1000, 100, Canvas(1, 4), (112, 11)),
        (100, 1000, Canvas(4, 1), (11, 112)),
        (10_000, 1, Canvas(1, 4), (112, 1)),  # never without a row
    ],
)
def test_canvas_and_size(width, height, canvas, size):
    assert choose_canvas(width, height, 28, 4) == canvas
    assert fitted_size(width, height, 28, canvas) == size


def test_canvases_are_those_of_the_published_configuration():
    ratios = [[canvas.rows, canvas.columns] for canvas in supported_canvases(4)]
    assert ratios == MllamaConfig().vision_config.supported_aspect_ratios


def test_smaller_bound_keeps_the_ids_of_the_model():
    canvas = choose_canvas(28, 56, 28, 2)
    assert canvas == Canvas(2, 1)
    assert aspect_ratio_id(canvas, 2) == 3
    assert aspect_ratio_id(canvas, 4) == 5  # after four canvases of one row


def test_bounds():
    with pytest.raises(ValueError, match="max_tiles is 0"):
        choose_canvas(5, 5, 28, 0)
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        choose_canvas(0, 5, 28, 4)
