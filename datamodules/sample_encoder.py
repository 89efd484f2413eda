"""The one thing that data modules know of a model family: its encoder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from datamodules.collate import Encoded
from datamodules.conversation import GivenTemplate
from datamodules.encoder import EncoderConfig, EncodingPlan
from datamodules.image_resize import ImageResize
from datamodules.image_slot_encoder import ImageSlotEncoder
from datamodules.images import ImageStore
from datamodules.llava_encoder import LlavaEncoder
from datamodules.mllama_encoder import MllamaEncoder
from datamodules.nvila_encoder import NvilaEncoder
from datamodules.preference_encoder import PreferenceEncoder
from models.checkpoint_paths import find_assets
from sample_loaders.document import Sample as RawSample

Sample = TypeVar("Sample", bound=Encoded, covariant=True)


class Collator(Protocol):
    """Makes micro-batches."""

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Builds a micro-batch of samples, one in a row."""
        ...

    def packed(self, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Builds a micro-batch of rows of several samples."""
        ...


class SampleEncoder(Protocol[Sample]):
    """Makes the samples and the micro-batches of a model family."""

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows of a batch."""
        ...

    def prepare(self) -> None:
        """Reads the assets, so that their errors come before any worker starts.

        Raises:
            ValueError: The assets do not suit.
        """
        ...

    def encode(self, sample: RawSample, images: ImageStore | None = None) -> Sample:
        """Encodes a sample.

        Raises:
            BadSample: The sample cannot be used.
        """
        ...

    def plan(self, sample: RawSample, images: ImageStore | None = None) -> EncodingPlan:
        """Does everything that needs no pixels.

        Raises:
            BadSample: The sample cannot be used.
        """
        ...

    def decode(self, plan: Any, images: ImageStore | None = None) -> Sample:
        """Adds the pixels to a plan.

        Raises:
            BadSample: An image is damaged.
        """
        ...

    def length(self, sample: RawSample, images: ImageStore | None = None) -> int:
        """Returns the number of positions, reading no more of an image than its header.

        Raises:
            BadSample: The sample cannot be used.
        """
        ...

    def filler(self, key: str) -> Sample:
        """Makes a sample of one pad token, without label and image."""
        ...

    def collator(self, pad_to_multiple_of: int, fixed_length: int | None) -> Collator:
        """Makes what joins samples to micro-batches."""
        ...


# By the `model_type` of a configuration.
_ENCODERS: dict[str, Callable[[EncoderConfig], SampleEncoder[Any]]] = {
    "llava": LlavaEncoder,
    "mllama": MllamaEncoder,
    "neva_llava": LlavaEncoder,
    "nvila_lite": NvilaEncoder,
}


def open_encoder(
    assets: str,
    seq_length: int,
    max_tiles: int | None = None,
    max_tiles_per_sample: int | None = None,
    image_resize: ImageResize = "fast",
    conversation_template: GivenTemplate = None,
    preference_pairs: bool = False,
) -> SampleEncoder[Any]:
    """Makes the encoder of the model that an assets folder belongs to.

    Args:
        assets: The folder, or a checkpoint or the folder of a run that has one.
        seq_length: No sample has more positions than this.
        max_tiles: Largest number of tiles of an image; None takes the model's own.
        max_tiles_per_sample: No sample has more tiles than this in all; None for no bound.
        image_resize: "exact" or "fast", as in `EncoderConfig`.
        conversation_template: As in `EncoderConfig`.
        preference_pairs: Every sample is a question with a chosen and a rejected answer.

    Raises:
        ValueError: An argument does not suit, or nothing here encodes for such a model.
    """
    config = EncoderConfig(
        assets=assets,
        seq_length=seq_length,
        max_tiles=max_tiles,
        max_tiles_per_sample=max_tiles_per_sample,
        image_resize=image_resize,
        conversation_template=conversation_template,
    )
    path = Path(find_assets(assets)) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The file {path} is not JSON: {error}.") from error
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type not in _ENCODERS:
        raise ValueError(
            f"The file {path} has model_type {model_type!r}, but samples can be encoded for "
            f"{', '.join(_ENCODERS)} only."
        )
    encoder = _ENCODERS[model_type](config)
    if not preference_pairs:
        return encoder
    if not isinstance(encoder, ImageSlotEncoder):
        raise ValueError(
            f"preference_pairs: True is not supported for {model_type}; preferences can be trained "
            f"on with nvila, llava and llava_jp."
        )
    return PreferenceEncoder(encoder)
