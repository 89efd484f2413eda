import io

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.energon_images import ShardImages
from datamodules.images import decode_image, image_size
from sample_loaders.errors import BadSample

PIXELS = np.random.default_rng(5).integers(0, 256, (7, 5, 3), dtype=np.uint8)
EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(16, 16)


def decoded(image):
    store = ShardImages({"a": image})
    assert image_size(store, "a", 10_000) == decode_image(store, "a", 10_000).size
    return np.asarray(decode_image(store, "a", 10_000))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        np.dstack([PIXELS, PIXELS[:, :, :1]]),
        torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()),
        torch.from_numpy(PIXELS.transpose(2, 0, 1).astype(np.float32) / 255),
        PIXELS.astype(np.float64) / 255,
    ],
    ids=["pil", "array", "array with alpha", "tensor", "float tensor", "float array"],
)
def test_decoded_images_keep_every_value(image):
    assert (decoded(image) == PIXELS).all()


def test_all_256_values_come_back_from_floating_point_in_grey():
    expected = np.repeat(EVERY_VALUE[:, :, None], 3, axis=2)
    for image in (EVERY_VALUE, torch.from_numpy(EVERY_VALUE.astype(np.float32) / 255)[None]):
        assert (decoded(image) == expected).all()


def test_bytes_are_given_as_they_are():
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "JPEG")
    assert ShardImages({"a": stream.getvalue()})("a").read() == stream.getvalue()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"nothing", "unreadable_image"),
        ("path", "wrong_type"),
        (np.zeros((4, 4, 2), np.uint8), "wrong_type"),
        (np.zeros((0, 4, 3), np.uint8), "wrong_type"),
        (np.zeros(4, np.uint8), "wrong_type"),
        (np.zeros((4, 4, 3), np.int64), "wrong_type"),
        (np.full((4, 4, 3), 1.5), "wrong_type"),
        (np.full((4, 4, 3), np.nan), "wrong_type"),
    ],
)
def test_what_is_no_image_is_a_bad_sample(image, reason):
    with pytest.raises(BadSample) as caught:
        decode_image(ShardImages({"a": image}), "a", 10_000)
    assert caught.value.reason == reason


def test_an_unknown_name_is_a_missing_image():
    with pytest.raises(BadSample) as caught:
        ShardImages({})("a")
    assert caught.value.reason == "missing_image"
