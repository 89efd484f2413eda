"""What is asked of an image file: its header first, its pixels once, and its bytes as they are."""

import base64
import functools
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Only decoders that run in this process; others start programs or fetch files.
_FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
# All that Pillow's decoders let through on damaged files.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
    IndexError, KeyError, OverflowError, TypeError, RuntimeError,
)  # fmt: skip
_DRAFT_SIZE = (64, 64)
_THUMBNAIL_SIZE = (160, 160)
_HASH_SIDE = 32
# Below this spread of grey levels a picture has no structure that a hash could tell apart.
_LEAST_CONTRAST = 4.0


class UnreadableImage(Exception):  # noqa: N818 - it is about a file, not about the program
    """A file that is no image or is damaged; the text says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What the first bytes of an image file say.

    Attributes:
        form: Pillow's name of the file format.
        width: In pixels.
        height: In pixels.
        is_animated: Whether there is more than one picture to show.
    """

    form: str
    width: int
    height: int
    is_animated: bool


@contextmanager
def without_pixel_bound() -> Iterator[None]:
    """Switches Pillow's own bound off, which warns first and lets twice as much pass."""
    bound = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = bound


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedImage:
    """An image file of which only the header was read.

    Attributes:
        header: What it says.
        picture: Reads the pixels when it is asked for them.
    """

    header: ImageHeader
    picture: Image.Image


def open_image(data: bytes) -> OpenedImage:
    """Reads the header of an image file and decodes nothing.

    Raises:
        UnreadableImage: It is no image.
    """
    image = _open(data)
    try:
        # Telephones put a second, smaller picture or a depth map behind the photograph (MPO).
        is_animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except _DECODE_ERRORS as error:
        raise UnreadableImage(_in_one_line(error)) from error
    header = ImageHeader(
        form=image.format or "", width=image.width, height=image.height, is_animated=is_animated
    )
    return OpenedImage(header=header, picture=image)


def decode(opened: OpenedImage) -> Image.Image:
    """Decodes an image file to its end.

    A JPEG is decoded at an eighth of its size and without colour. All of its data is read and
    checked for that, and what is saved is the arithmetic afterwards, which cannot fail.

    Returns:
        The picture, small where the file is a JPEG.

    Raises:
        UnreadableImage: It is damaged or cut short.
    """
    image = opened.picture
    try:
        image.draft("L", _DRAFT_SIZE)
        image.load()
    except _DECODE_ERRORS as error:
        raise UnreadableImage(_in_one_line(error)) from error
    return image


def stored_file(data: bytes, header: ImageHeader) -> tuple[str, bytes]:
    """Returns the extension and bytes that go into a shard.

    JPEG, PNG and WebP stay as they are; anything else becomes PNG, and colours that PNG does not
    know (CMYK, Lab, floating point) become RGB, as they would in training.

    Raises:
        UnreadableImage: It cannot be decoded.
    """
    if header.form in _EXTENSIONS:
        return _EXTENSIONS[header.form], data
    stream = io.BytesIO()
    try:
        image = _open(data)
        image.load()
        if image.mode not in _PNG_MODES:
            image = image.convert("RGB")
        image.save(stream, "PNG")
    except _DECODE_ERRORS as error:
        raise UnreadableImage(_in_one_line(error)) from error
    return "png", stream.getvalue()


def perceptual_hash(image: Image.Image) -> int | None:
    """Returns 64 bits that stay nearly the same when a picture is resized or compressed again.

    They are the signs, against their median, of the lowest 8 x 8 frequencies of the picture in
    32 x 32 shades of grey.

    Returns:
        The bits, or None for a picture that is nearly one colour.
    """
    grey = image if image.mode == "L" else image.convert("L")
    values = np.asarray(grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX), np.float64)
    if values.std() < _LEAST_CONTRAST:
        return None
    frequencies = (_COSINES @ values @ _COSINES.T).ravel()
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(data: bytes) -> str:
    """Returns a small JPEG of an image that was found readable, as an address for HTML."""
    image = _open(data)
    image.draft("RGB", (2 * _THUMBNAIL_SIZE[0], 2 * _THUMBNAIL_SIZE[1]))
    small = image.convert("RGB")
    small.thumbnail(_THUMBNAIL_SIZE)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_readable_forms())
    except _DECODE_ERRORS as error:
        raise UnreadableImage(_in_one_line(error)) from error


@functools.cache
def _readable_forms() -> tuple[str, ...]:
    """Those of `_FORMS` that this Pillow was built with; asking it for another is an error."""
    Image.init()
    return tuple(form for form in _FORMS if form in Image.OPEN)


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    # Pillow names the stream, at an address that changes from run to run.
    return "it is no image of a known format" if "cannot identify" in text else text or repr(error)


def _low_cosines() -> np.ndarray:
    """The 8 lowest rows of the cosine transform over 32 values."""
    rows = np.arange(8)[:, None]
    columns = np.arange(_HASH_SIDE)[None, :]
    return np.cos(np.pi * rows * (2 * columns + 1) / (2 * _HASH_SIDE))


_COSINES = _low_cosines()
