"""The images of a shard's sample as an image store."""

import io
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from sample_loaders.errors import BadSample, Reason


class ShardImages:
    """An image store over images in memory.

    Bytes are given out as they are, and decoded once, by the encoder. Images that the data set has
    decoded already are given out as PPM, that is a line of text before the plain RGB values: every
    value stays what it is, and opening it costs a copy, not a second decoding.

    Args:
        images: Bytes, PIL images, tensors [C, H, W] or arrays [H, W, C], by name; C is 1, 3 or 4,
            or missing; integers are 0 to 255, floating-point values 0 to 1.
    """

    def __init__(self, images: Mapping[str, Any]) -> None:
        self._images = images
        self._encoded: dict[str, bytes] = {}

    def __call__(self, name: str) -> BinaryIO:
        """Opens an image.

        Raises:
            BadSample: There is no such image, or it is not one.
        """
        if name not in self._images:
            raise BadSample(Reason.MISSING_IMAGE, f"The sample has no image {name!r}.")
        if name not in self._encoded:
            image = self._images[name]
            self._encoded[name] = image if isinstance(image, bytes) else _to_ppm(image, name)
        return io.BytesIO(self._encoded[name])


def _to_ppm(image: Any, name: str) -> bytes:
    if isinstance(image, Image.Image):
        try:
            pixels = np.asarray(image.convert("RGB"))
        except OSError as error:  # PIL decodes late, so the file may only now prove damaged
            raise BadSample(
                Reason.UNREADABLE_IMAGE, f"The image {name} cannot be decoded: {error}."
            ) from error
    elif isinstance(image, torch.Tensor):
        values = image.numpy()
        pixels = _to_rgb(values.transpose(1, 2, 0) if values.ndim == 3 else values, name)
    elif isinstance(image, np.ndarray):
        pixels = _to_rgb(image, name)
    else:
        raise BadSample(
            Reason.WRONG_TYPE,
            f"The image {name} is a {type(image).__name__}, which is neither bytes nor a PIL image "
            f"nor a tensor nor an array.",
        )
    height, width, _ = pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + pixels.tobytes()


def _to_rgb(values: np.ndarray, name: str) -> np.ndarray:
    """Returns uint8 [H, W, 3] of [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or 0 in values.shape:
        raise BadSample(
            Reason.WRONG_TYPE, f"The image {name} has the shape {values.shape}, not of an image."
        )
    if np.issubdtype(values.dtype, np.floating):
        if not (
            values.min() >= 0 and values.max() <= 1
        ):  # also false for values that are no number
            raise BadSample(
                Reason.WRONG_TYPE, f"The image {name} has floating-point values outside 0 to 1."
            )
        # Decoders divide by 255 in single precision; rounding gives back the very same integers.
        values = np.round(values.astype(np.float32) * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise BadSample(
            Reason.WRONG_TYPE, f"The image {name} has values of type {values.dtype}, not uint8."
        )
    if values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    return np.ascontiguousarray(values[:, :, :3])
