import io
import random
import struct
import zlib

import pytest
from PIL import Image

from preparation.images import (
    UnreadableImage,
    decode,
    open_image,
    perceptual_hash,
    stored_file,
    thumbnail,
    without_pixel_bound,
)
from tests.preparation.toy_source import encoded, picture


def distance(first: Image.Image, second: Image.Image) -> int:
    return (perceptual_hash(first) ^ perceptual_hash(second)).bit_count()


def png_of_size(width: int, height: int) -> bytes:
    """The header of a PNG, with data for the first line only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 + 3 * width))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)


def test_the_header_of_a_bomb_is_read_without_its_pixels():
    with without_pixel_bound():
        header = open_image(png_of_size(60_000, 50_000)).header
    assert (header.width, header.height) == (60_000, 50_000)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_told_from_stills(form):
    frames = [picture(1), picture(2)]
    moving = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    assert open_image(moving).header.is_animated
    assert not open_image(encoded(frames[0], form)).header.is_animated


def test_a_photograph_with_a_second_picture_behind_it_is_a_still():
    data = encoded(picture(1), "MPO", save_all=True, append_images=[picture(2)])
    header = open_image(data).header
    assert header.form == "MPO"
    assert not header.is_animated
    assert stored_file(data, header) == ("jpg", data)


@pytest.mark.parametrize(("form", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_files_that_training_reads_stay_as_they_are(form, extension):
    data = encoded(picture(1), form)
    assert stored_file(data, open_image(data).header) == (extension, data)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "I;16", "CMYK"])
def test_other_files_become_png_with_the_same_pixels(mode):
    image = picture(1).convert("L").convert("I;16") if mode == "I;16" else picture(1).convert(mode)
    data = encoded(image, "TIFF")
    extension, stored = stored_file(data, open_image(data).header)
    assert extension == "png"
    written = Image.open(io.BytesIO(stored))
    assert written.format == "PNG"
    expected = image.convert("RGB") if mode == "CMYK" else image
    assert written.convert(expected.mode).tobytes() == expected.tobytes()


@pytest.mark.parametrize("data", [b"", b"no image", b"GIF89a", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_named_without_addresses(data):
    with pytest.raises(UnreadableImage) as error:
        check_pixels(data)
    assert "0x" not in str(error.value)


def check_pixels(data: bytes) -> Image.Image:
    return decode(open_image(data))


def is_accepted(data: bytes, read) -> bool:
    try:
        read(data)
    except UnreadableImage:
        return False
    except (OSError, SyntaxError, ValueError):
        return False
    return True


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_decoding_a_jpeg_small_finds_the_same_damage_as_decoding_it_whole(options):
    whole = encoded(picture(3, (200, 150)), quality=90, **options)
    chance = random.Random(7)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        if chance.random() < 0.5:
            del data[chance.randrange(2, len(data)) :]
        else:
            for _ in range(chance.choice((1, 8, 40))):
                data[chance.randrange(len(data))] = chance.randrange(256)
        data = bytes(data)
        expected = is_accepted(data, lambda data: Image.open(io.BytesIO(data)).load())
        assert is_accepted(data, check_pixels) == expected
        refused += not expected
    assert 50 < refused < 150


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_cut_files_are_unreadable(form):
    data = encoded(picture(3, (200, 150)), form)
    check_pixels(data)
    with pytest.raises(UnreadableImage):
        check_pixels(data[: len(data) // 2])


def test_a_picture_keeps_its_hash_when_it_is_resized_or_compressed_again():
    for seed in range(20):
        image = picture(seed, (640, 480))
        small = image.resize((320, 240))
        for data in (encoded(image, quality=40), encoded(small, "WEBP"), encoded(small, "PNG")):
            assert distance(image, check_pixels(data)) <= 4


def test_different_pictures_have_different_hashes():
    images = [picture(seed, (320, 240)) for seed in range(30)]
    for number, first in enumerate(images):
        for second in images[:number]:
            assert distance(first, second) > 15


def test_a_picture_of_one_colour_has_no_hash():
    assert perceptual_hash(Image.new("RGB", (100, 100), "white")) is None


def test_a_thumbnail_is_small():
    address = thumbnail(encoded(picture(1, (2000, 1000)), "PNG"))
    assert address.startswith("data:image/jpeg;base64,")
    assert len(address) < 20_000
