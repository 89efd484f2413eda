"""How well images fit sentences, by a CLIP model from a local folder."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preparation.formats.rows import Refusal
from preparation.reasons import RejectionReason
from preparation.source import RawImage

_BATCH_SIZE = 32
_LONGEST_SIDE = 16_000


class ClipSimilarity:
    """Cosine similarity of images and sentences.

    The model is loaded when it is first asked, in the process that asks, onto a GPU where there is
    one. Long sentences are cut at what the model reads.

    Args:
        folder: A folder with a `CLIPModel` of transformers and its processor.
        batch_size: Images or sentences that go through the model at once.

    Raises:
        ValueError: The folder holds no CLIP model.
    """

    def __init__(self, folder: Path, batch_size: int = _BATCH_SIZE) -> None:
        if not (folder / "config.json").is_file():
            raise ValueError(f"clip_model: {folder} is no folder of a CLIP model: no config.json.")
        self.folder = folder
        self.batch_size = batch_size
        self._loaded: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "batch_size": self.batch_size, "_loaded": None}

    def matrix(self, images: Sequence[RawImage], sentences: Sequence[str]) -> np.ndarray:
        """Compares every image with every sentence.

        Args:
            images: Image files.
            sentences: Texts.

        Returns:
            float32 [images, sentences], each from -1 to 1.

        Raises:
            Refusal: An image cannot be decoded.
            ValueError: The folder's model is not a CLIP model.
        """
        if not images or not sentences:
            return np.zeros((len(images), len(sentences)), dtype=np.float32)
        model, _ = self._load()
        seen = np.concatenate(
            [
                self._unit_features(model.get_image_features, self._pixels(batch))
                for batch in _batches(images, self.batch_size)
            ]
        )
        read = np.concatenate(
            [
                self._unit_features(model.get_text_features, self._tokens(batch))
                for batch in _batches(sentences, self.batch_size)
            ]
        )
        return seen @ read.T

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoConfig, CLIPModel, CLIPProcessor

            kind = AutoConfig.from_pretrained(self.folder, local_files_only=True).model_type
            if kind != "clip":
                raise ValueError(f"clip_model: {self.folder} holds a {kind} model, not a clip one.")
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = CLIPModel.from_pretrained(self.folder, local_files_only=True)
            processor = CLIPProcessor.from_pretrained(
                self.folder, local_files_only=True, use_fast=False
            )
            self._loaded = model.eval().to(device), processor
        return self._loaded

    def _pixels(self, images: Sequence[RawImage]) -> Any:
        _, processor = self._load()
        decoded = [_decode(image) for image in images]
        return processor.image_processor(images=decoded, return_tensors="pt")

    def _tokens(self, sentences: Sequence[str]) -> Any:
        model, processor = self._load()
        return processor.tokenizer(
            list(sentences),
            padding=True,
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )

    def _unit_features(self, encode: Any, inputs: Any) -> np.ndarray:
        """float32 [batch, width], of length 1."""
        import torch

        model, _ = self._load()
        with torch.inference_mode():
            features = encode(**inputs.to(model.device)).float()
        return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _decode(raw: RawImage) -> Any:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw.data)) as image:
            if max(image.size) > _LONGEST_SIDE:
                raise Refusal(
                    RejectionReason.IMAGE_TOO_LARGE,
                    f"The image {raw.name} is {image.width} x {image.height} pixels large.",
                )
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise Refusal(
            RejectionReason.DECOMPRESSION_BOMB, f"The image {raw.name} is a bomb: {error}"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Refusal(
            RejectionReason.UNREADABLE_IMAGE, f"The image {raw.name} is unreadable: {error}."
        ) from error
