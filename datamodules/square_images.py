"""The images of models that see each as one square: padded if asked, resized, cut at the middle.

What is done is read from the model's image processor, so that training sees what inference sees:
CLIP's resizes the shorter side and takes the middle, LLaVA's may pad to a square before, SigLIP's
resizes both sides.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor
from transformers.image_processing_utils_fast import BaseImageProcessorFast

from datamodules.assets import check_image_processor, require_image_processor
from datamodules.image_resize import image_pixels, resize_bicubic

_SUPPORTED = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor")


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareImages:
    """Makes squares of images.

    Attributes:
        side: Side of a square in pixels.
        crops: Whether the shorter side is resized and the middle taken; else both are resized.
        background: Colour with which images are padded to a square first; None for no padding.
        processor: The image processor.
    """

    side: int
    crops: bool
    background: tuple[int, ...] | None
    processor: BaseImageProcessor

    def fill(self, square: np.ndarray, image: Image.Image) -> None:
        """Writes the square of an RGB image, resized the fast way.

        Args:
            square: uint8 [3, side, side], which is written.
            image: The image.
        """
        if self.background is not None:
            image = _on_square(image, self.background)
        width, height = self._resized(image.width, image.height)
        rows = resize_bicubic(image_pixels(image), width, height)  # [height, 3, width]
        top, left = self._offset(height), self._offset(width)
        cut = rows[top : top + self.side, :, left : left + self.side]
        torch.from_numpy(square).copy_(cut.permute(1, 0, 2))

    def fill_exactly(self, square: np.ndarray, image: Image.Image) -> None:
        """Does the same with the pixels that the image processor makes."""
        made = self.processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        square[:] = np.asarray(made)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if not self.crops:
            return self.side, self.side
        # The order of operations of transformers: another one rounds otherwise.
        short, long = sorted((width, height))
        longer = int(self.side * long / short)
        return (self.side, longer) if width <= height else (longer, self.side)

    def _offset(self, length: int) -> int:
        surplus = length - self.side
        if isinstance(self.processor, BaseImageProcessorFast):
            return round(surplus / 2)  # as torchvision has it
        return surplus // 2


def load_square_images(folder: str, side: int) -> SquareImages:
    """Reads the image processor of a model.

    Args:
        folder: With `preprocessor_config.json`.
        side: What the vision tower takes, in pixels.

    Raises:
        ValueError: It is missing, of another kind, or does not fit the tower.
    """
    require_image_processor(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    kind = type(processor).__name__.removesuffix("Fast")
    if kind not in _SUPPORTED:
        raise ValueError(
            f"The image processor in {folder} is a {kind}, but must be one of "
            f"{', '.join(_SUPPORTED)}."
        )
    # CLIP's may name both sides too, as for LLaVA-JP: then nothing is left to cut.
    crops = "shortest_edge" in dict(processor.size)
    square = {"height": side, "width": side}
    wanted: dict[str, Any] = {"do_resize": True, "resample": int(Image.Resampling.BICUBIC)}
    if crops:
        wanted |= {"do_center_crop": True, "crop_size": square, "size": {"shortest_edge": side}}
    else:
        wanted |= {"size": square}
    check_image_processor(processor, wanted, folder)
    background = None
    if getattr(processor, "do_pad", None):
        background = tuple(int(mean * 255) for mean in processor.image_mean)
    return SquareImages(side=side, crops=crops, background=background, processor=processor)


def _on_square(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
