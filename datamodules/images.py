"""Opening and decoding images, where every way to fail is a bad sample with a name."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from sample_loaders.errors import BadSample, Reason

# Gives the bytes of an image by its name in the record: from a folder, or from a shard's sample.
ImageStore = Callable[[str], BinaryIO]

# All that PIL's decoders raise on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class ImageFolder:
    """An image store over the files below a folder.

    Args:
        folder: Names in records are relative to it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __call__(self, name: str) -> BinaryIO:
        """Opens the file.

        Raises:
            BadSample: There is no such file, or it cannot be opened.
        """
        path = self.folder / name
        try:
            return open(path, "rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise BadSample(Reason.MISSING_IMAGE, f"There is no image {path}.") from error
        except (OSError, ValueError) as error:
            raise BadSample(
                Reason.UNREADABLE_IMAGE, f"The image {path} cannot be opened: {error}."
            ) from error


def image_size(store: ImageStore, name: str, max_pixels: int) -> tuple[int, int]:
    """Reads the width and height of an image from its header, decoding nothing.

    Raises:
        BadSample: The image is missing, not an image, or has more pixels than allowed.
    """
    with store(name) as stream:
        return _open(stream, name, max_pixels).size


def without_alpha(image: Image.Image) -> Image.Image:
    """Returns the colours of an image; what is transparent shows the colour behind it."""
    # Pillow would copy what is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_image(
    store: ImageStore,
    name: str,
    max_pixels: int,
    to_rgb: Callable[[Image.Image], Image.Image] = without_alpha,
) -> Image.Image:
    """Decodes an image to RGB; its EXIF orientation is ignored, as in the published training.

    Args:
        store: Where the image is.
        name: The image.
        max_pixels: Larger images are refused before they are decoded.
        to_rgb: What becomes of transparency, where families differ.

    Raises:
        BadSample: As for `image_size`, or the file is damaged or cut short.
    """
    with store(name) as stream:
        image = _open(stream, name, max_pixels)
        try:
            image.load()
            return to_rgb(image)
        except _DECODE_ERRORS as error:
            raise BadSample(
                Reason.UNREADABLE_IMAGE, f"The image {name} cannot be decoded: {error}."
            ) from error


def _open(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(stream)
    except Image.DecompressionBombError as error:
        raise BadSample(Reason.TOO_MANY_PIXELS, f"The image {name} is a bomb: {error}.") from error
    except _DECODE_ERRORS as error:
        raise BadSample(
            Reason.UNREADABLE_IMAGE, f"The image {name} cannot be opened: {error}."
        ) from error
    if image.width * image.height > max_pixels:
        raise BadSample(
            Reason.TOO_MANY_PIXELS,
            f"The image {name} has {image.width} x {image.height} pixels, above {max_pixels}.",
        )
    return image
