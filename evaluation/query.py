"""A question to a model, and its images."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

IMAGE_PLACEHOLDER = "<image>"

ImageSource = Image.Image | Path | str

# All that PIL's decoders raise on damaged files, and on files too large to be meant.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Query:
    """A conversation that waits for an answer, and its images.

    Attributes:
        messages: Messages with ``role`` and a string ``content``; ``<image>`` stands for an image.
        images: PIL images or paths, one for each placeholder, in order.
    """

    messages: Sequence[dict[str, str]]
    images: Sequence[ImageSource] = ()

    @classmethod
    def ask(cls, question: str, images: Sequence[ImageSource] = ()) -> "Query":
        """Makes a query of one question; images without a placeholder come before it."""
        if IMAGE_PLACEHOLDER not in question:
            question = f"{IMAGE_PLACEHOLDER}\n" * len(images) + question
        return cls([{"role": "user", "content": question}], images)


def open_image(source: ImageSource) -> Image.Image:
    """Returns a decoded image in the mode of its file.

    Raises:
        ValueError: If the file is missing, is no image or is damaged.
    """
    if isinstance(source, Image.Image):
        return source
    try:
        with Image.open(source) as image:
            image.load()
            return image.copy()
    except _DECODE_ERRORS as error:
        raise ValueError(f"image: {source} cannot be decoded ({error}).") from error


def image_size(source: ImageSource) -> tuple[int, int]:
    """Returns width and height; only the header of a file is read.

    Raises:
        ValueError: If the file is missing or is no image.
    """
    if isinstance(source, Image.Image):
        return source.size
    try:
        with Image.open(source) as image:
            return image.size
    except _DECODE_ERRORS as error:
        raise ValueError(f"image: {source} cannot be opened ({error}).") from error
