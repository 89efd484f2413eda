"""The fast resize beside Pillow's, one axis after the other.

Pillow shrinks the height first where that is less work, since version 13; before, and in the
published training, the width came first always. So the expected pixels are those of two calls.
"""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from datamodules.encoder import EncoderConfig
from datamodules.image_resize import image_pixels, resize_bicubic, resize_bilinear
from datamodules.nvila_tiles import fill_tiles, fill_tiles_exactly
from datamodules.sample_encoder import open_encoder
from models.hf_code.tiling_nvila_lite import choose_grid, tile_count
from sample_loaders.conversation import parse_llava

FILTERS = {
    # The largest difference in levels. Bicubic rings around edges, in both passes.
    "bicubic": (resize_bicubic, Image.Resampling.BICUBIC, 2),
    "bilinear": (resize_bilinear, Image.Resampling.BILINEAR, 2),
}
SIZES = [(1, 1), (1, 300), (300, 1), (17, 5), (56, 56), (57, 56), (56, 57), (100, 75), (75, 100)]
SIZES += [(168, 56), (55, 170), (640, 480), (333, 1000), (1000, 333), (701, 703), (1280, 720)]


def noise(width, height):
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def black_and_white(width, height):
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255)


def smooth(width, height):
    """A gradient with lines: every tile differs from every other."""
    across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    image = Image.fromarray(np.stack([across, down, 255 - across], axis=2).astype(np.uint8))
    ImageDraw.Draw(image).line((0, 0, width, height), fill=(255, 255, 255))
    return image


def two_passes(image, width, height, method):
    return np.asarray(image.resize((width, image.height), method).resize((width, height), method))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("make", [noise, black_and_white, smooth])
def test_pixels_are_nearly_those_of_pillow(name, make):
    resize, method, largest = FILTERS[name]
    for number, (width, height) in enumerate(SIZES):
        image = make(width, height)
        for new in [(56, 56), (27, 41), (224, 168), (1, 90), SIZES[number - 1]]:
            found = resize(image_pixels(image), *new)
            assert found.dtype == torch.uint8
            assert found.shape == (new[1], 3, new[0])
            expected = two_passes(image, *new, method).transpose(0, 2, 1)
            difference = np.abs(found.numpy().astype(int) - expected)
            assert difference.max() <= largest, (make.__name__, width, height, new)


@pytest.mark.parametrize("name", FILTERS)
def test_bits_are_those_of_one_call_of_torch(name):
    resize = FILTERS[name][0]
    for width, height in SIZES:
        pixels = image_pixels(noise(width, height))
        planes = pixels.permute(2, 0, 1)[None]
        for new in [(56, 56), (41, 27), (224, 168)]:
            expected = torch.nn.functional.interpolate(
                planes, size=new[::-1], mode=name, antialias=True
            )
            assert resize(pixels, *new).permute(1, 0, 2).equal(expected[0]), (width, height, new)


@pytest.mark.parametrize(("side", "max_tiles"), [(56, 12), (56, 1), (27, 12), (28, 6)])
def test_tiles_stand_where_the_exact_ones_do(side, max_tiles):
    for width, height in SIZES:
        image = smooth(width, height)
        shape = (tile_count(width, height, side, max_tiles), 3, side, side)
        fast, exact = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        fill_tiles(fast, image, max_tiles)
        fill_tiles_exactly(exact, image, max_tiles)
        columns, rows = choose_grid(width, height, side, max_tiles)
        method = Image.Resampling.BICUBIC
        grid = two_passes(image, columns * side, rows * side, method)
        expected = [
            grid[top : top + side, left : left + side]
            for top in range(0, rows * side, side)
            for left in range(0, columns * side, side)
        ]
        if len(expected) > 1:
            expected.append(two_passes(image, side, side, method))
        expected = np.stack(expected).transpose(0, 3, 1, 2).astype(int)
        assert np.abs(fast - expected).max() <= 2, (width, height)
        # Pillow's own order of the axes may be another one, which moves single pixels by more.
        assert np.abs(fast.astype(int) - exact).mean(axis=(1, 2, 3)).max() < 1, (width, height)


def test_nothing_is_changed_where_no_size_changes():
    image = noise(168, 56)
    tiles = np.empty((4, 3, 56, 56), np.uint8)
    fill_tiles(tiles, image, 12)
    joined = tiles[:3].transpose(2, 0, 3, 1).reshape(56, 168, 3)
    assert (joined == np.asarray(image)).all()


@pytest.mark.parametrize("way", ["exact", "fast"])
def test_both_ways_make_batches_of_integers(make_encoder, make_llama_encoder, make_record, way):
    record = make_record("<image><image>Q", "A", image=["photo.jpg", "wide.png"])
    for make, tiles in ((make_encoder, 13 + 4), (make_llama_encoder, 4 + 3)):
        encoder = make(image_resize=way)
        sample = encoder.encode(parse_llava(record, key="k", source="s"))
        batch = encoder.collator(8, None)([sample, encoder.filler("f"), sample])
        assert batch["tiles"].dtype == torch.uint8
        assert batch["tiles"].shape[:2] == (2 * tiles, 3)
        assert batch["tiles"].is_contiguous()
        alone = encoder.collator(8, None)([sample])["tiles"]
        assert alone.is_contiguous()
        assert alone.equal(batch["tiles"][:tiles])


def test_the_ways_differ_by_little_and_not_by_nothing(
    make_encoder, make_llama_encoder, make_record, tmp_path
):
    noise(640, 480).save(tmp_path / "picture.png")
    record = parse_llava(make_record("<image>Q", "A", image="picture.png"), key="k", source="s")
    for make in (make_encoder, make_llama_encoder):
        exact, fast = (
            make(image_resize=way, image_folder=str(tmp_path)).encode(record)
            for way in ("exact", "fast")
        )
        assert (exact.tokens == fast.tokens).all()
        assert exact.tiles.shape == fast.tiles.shape
        assert 0 < np.abs(exact.tiles.astype(int) - fast.tiles).max() <= 2


def test_another_way_is_refused():
    message = "image_resize is 'nearest', but must be 'exact' or 'fast'"
    with pytest.raises(ValueError, match=message):
        open_encoder("none", 8, image_resize="nearest")
    with pytest.raises(ValueError, match=message):
        EncoderConfig(assets="none", seq_length=8, image_resize="nearest")


def test_the_default_is_the_same_everywhere(nemo):
    from datamodules.energon import EnergonDataModule
    from datamodules.preloaded import PreloadedDataModule

    for place in (EncoderConfig, open_encoder, PreloadedDataModule, EnergonDataModule):
        assert inspect.signature(place).parameters["image_resize"].default == "fast"
        assert "image_resize:" in place.__doc__


def test_data_modules_hand_the_option_on(nemo, assets, images, write_jsonl, make_record, tmp_path):
    from datamodules.energon import EnergonDataModule
    from datamodules.preloaded import PreloadedDataModule

    path = write_jsonl(tmp_path / "records.jsonl", [make_record("Q", "A")])
    for make, name in ((PreloadedDataModule, "train_paths"), (EnergonDataModule, "path")):
        with pytest.raises(ValueError, match="image_resize is 'cubic'"):
            make(**{name: path}, image_resize="cubic")
        for way in ("exact", "fast"):
            module = make(**{name: path}, assets=assets, image_resize=way)
            assert module.open_encoder().config.image_resize == way
