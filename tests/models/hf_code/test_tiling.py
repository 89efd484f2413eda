import numpy as np
import pytest
from PIL import Image

from models.hf_code.tiling_nvila_lite import (
    candidate_grids,
    choose_grid,
    cut_tiles,
    tile_count,
)


@pytest.mark.parametrize(("max_tiles", "count"), [(12, 35), (6, 14), (1, 1)])
def test_number_of_candidates(max_tiles, count):
    grids = candidate_grids(1, max_tiles)
    assert len(grids) == len(set(grids)) == count
    assert all(1 <= columns * rows <= max_tiles for columns, rows in grids)


@pytest.mark.parametrize(
    ("width", "height", "of_12", "of_6"),
    [
        (448, 448, (1, 1), (1, 1)),
        (640, 480, (4, 3), (3, 2)),
        (64, 48, (4, 3), (3, 2)),
        (1000, 1000, (3, 3), (2, 2)),
        (1920, 1080, (4, 2), (2, 1)),
        (1280, 720, (4, 2), (2, 1)),
        (300, 300, (1, 1), (1, 1)),
        (200, 2000, (1, 10), (1, 6)),
    ],
)
def test_published_examples(width, height, of_12, of_6):
    assert choose_grid(width, height, 448, 12) == of_12
    assert choose_grid(width, height, 448, 6) == of_6


def test_a_tie_of_equal_ratios_is_decided_by_the_area():
    # 2x1 and 4x2 are the same ratio; 4x2 needs more than 0.5 * 448 * 448 * 8 = 802,816 pixels.
    assert 1194 * 672 == 802_368
    assert choose_grid(1194, 672, 448, 12) == (2, 1)
    assert 1267 * 634 == 803_278
    assert choose_grid(1267, 634, 448, 12) == (4, 2)
    # The size of the tile sets the bound: 0.5 * 449 * 449 * 8 = 806,404.
    assert choose_grid(1267, 634, 449, 12) == (2, 1)


def test_a_tie_of_different_ratios_is_decided_by_the_area():
    # 7:8 is as far from 1:1 as from 3:4: candidates in order are 1x1, 2x2, 3x3 and 3x4, which need
    # more than 2, 4.5 and 6 tiles' area (401,408, 903,168 and 1,204,224 pixels).
    assert choose_grid(350, 400, 448, 12) == (1, 1)
    assert choose_grid(700, 800, 448, 12) == (2, 2)
    assert choose_grid(910, 1040, 448, 12) == (3, 3)
    assert choose_grid(1050, 1200, 448, 12) == (3, 4)


def test_ties_inside_one_product_never_decide():
    # Grids of equal product have no defined order in the published code; no image may depend on it.
    grids = candidate_grids(1, 12)
    for width in range(1, 200):
        for height in range(1, 200):
            differences = [abs(width / height - columns / rows) for columns, rows in grids]
            best = min(differences)
            products = [
                columns * rows
                for (columns, rows), difference in zip(grids, differences, strict=True)
                if difference == best
            ]
            assert len(products) == len(set(products))


def test_tile_count_has_the_thumbnail_only_above_one_tile():
    assert tile_count(448, 448, 448, 12) == 1
    assert tile_count(640, 480, 448, 12) == 13
    assert tile_count(640, 480, 448, 6) == 7
    assert tile_count(168, 56, 56, 12) == 4
    assert tile_count(168, 56, 56, 1) == 1


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_tiles_are_plain_crops_row_by_row_and_the_thumbnail_is_last():
    image = noise(100, 75)
    tiles = cut_tiles(image, 14, 12)
    assert tiles.dtype == np.uint8
    assert tiles.shape == (13, 3, 14, 14)
    resized = image.resize((56, 42))  # PIL's default filter
    for index, tile in enumerate(tiles[:-1]):
        left, top = index % 4 * 14, index // 4 * 14
        crop = np.asarray(resized.crop((left, top, left + 14, top + 14)))
        np.testing.assert_array_equal(tile.transpose(1, 2, 0), crop)
    thumbnail = np.asarray(image.resize((14, 14)))
    np.testing.assert_array_equal(tiles[-1].transpose(1, 2, 0), thumbnail)


def test_a_strip_at_tile_size_is_cut_without_change():
    image = noise(168, 56)
    tiles = cut_tiles(image, 56, 12)
    assert tiles.shape == (4, 3, 56, 56)
    pixels = np.asarray(image)
    for index in range(3):
        expected = pixels[:, 56 * index : 56 * (index + 1)].transpose(2, 0, 1)
        np.testing.assert_array_equal(tiles[index], expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_modes_are_converted(mode):
    image = noise(20, 20).convert(mode)
    tiles = cut_tiles(image, 20, 12)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(tiles[0], expected)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="max_tiles=0"):
        choose_grid(10, 10, 14, 0)
    with pytest.raises(ValueError, match="0x10 pixels"):
        choose_grid(0, 10, 14, 12)
