import numpy as np
import pytest

from models.hf_code.prompt_nvila_lite import (
    expand_images,
    expand_tile_tokens,
    tokens_per_tile,
)


@pytest.mark.parametrize(
    ("text", "tiles", "expected"),
    [
        ("何ですか?", [], "何ですか?"),
        ("<image>\n何?", [1], "<image>\n何?"),
        ("<image>何?", [1], "<image>\n何?"),
        ("<image>\n\n何?", [1], "<image>\n\n何?"),
        ("<image>\n何?", [3], "<image>\n<image>\n<image>\n何?"),
        ("a <image> b", [2], "a <image>\n<image>\n b"),
        ("<image>", [2], "<image>\n<image>\n"),
        ("a<image>\nb<image>c", [1, 2], "a<image>\nb<image>\n<image>\nc"),
        ("<image><image>", [1, 1], "<image>\n<image>\n"),
        ("<image>\n<image>\nx", [1, 1], "<image>\n<image>\nx"),
        ("a\n<image>\nb", [1], "a\n<image>\nb"),
    ],
)
def test_expand_images(text, tiles, expected):
    assert expand_images(text, tiles) == expected


@pytest.mark.parametrize(
    ("text", "tiles"), [("no image", [1]), ("<image>", []), ("<image>", [1, 1])]
)
def test_placeholders_and_images_must_match(text, tiles):
    with pytest.raises(ValueError, match="exactly one placeholder for every image"):
        expand_images(text, tiles)


def test_expand_tile_tokens():
    ids = [5, 99, 7, 99, 99]
    expanded, source = expand_tile_tokens(ids, 99, 10, 2)
    assert expanded.tolist() == [5, 99, 99, 10, 7, 99, 99, 10, 99, 99, 10]
    assert source.tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4]
    assert expanded.dtype == source.dtype == np.int64


def test_expand_tile_tokens_without_tiles_or_tokens():
    expanded, source = expand_tile_tokens(np.array([1, 2, 10]), 99, 10, 256)
    assert expanded.tolist() == [1, 2, 10]
    assert source.tolist() == [0, 1, 2]
    expanded, source = expand_tile_tokens([], 99, 10, 256)
    assert len(expanded) == len(source) == 0


def test_expand_tile_tokens_leaves_its_input_alone():
    ids = np.array([99])
    expand_tile_tokens(ids, 99, 10, 2)
    assert ids.tolist() == [99]


@pytest.mark.parametrize(
    ("image_size", "patch_size", "downsample", "tokens"),
    [(448, 14, 2, 256), (448, 14, 3, 121), (56, 14, 2, 4), (56, 14, 3, 4), (378, 14, 2, 196)],
)
def test_tokens_per_tile(image_size, patch_size, downsample, tokens):
    assert tokens_per_tile(image_size, patch_size, downsample) == tokens
