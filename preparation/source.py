"""What a reader of one source format hands to the rest: samples with their images' files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from preparation.reasons import RejectionReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of one input file that can be read by itself.

    Attributes:
        path: The file.
        first: The first row or byte, as the reader counts.
        stop: The one after the last; -1 is the end of the file.
        size_bytes: About how much is read, images included where that is known.
    """

    path: Path
    first: int = 0
    stop: int = -1
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImage:
    """An image as it is in the source.

    Attributes:
        name: Its path, member or address in the source, for people.
        data: The bytes of its file.
    """

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSample:
    """A sample before any filter.

    Attributes:
        key: Names the record in its source; unique and the same at every reading.
        record: The JSON object of the sample, without its images.
        images: The images in the order of their placeholders.
        similarity: For each image how well it fits its text, where the source says so.
    """

    key: str
    record: Mapping[str, Any]
    images: tuple[RawImage, ...] = ()
    similarity: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A record that is no sample, or an image that its record does without.

    Attributes:
        key: Names the record as a sample's key does, or the image.
        reason: Why.
        message: One sentence for a person.
        is_image: Whether it is only an image.
    """

    key: str
    reason: RejectionReason
    message: str
    is_image: bool = False


class Reader(Protocol):
    """Reads one source of one format."""

    def pieces(self) -> Sequence[Piece]:
        """Lists what there is to read, in an order that is always the same."""

    def read(self, piece: Piece) -> Iterator[RawSample | Rejected]:
        """Reads a piece; a bad record is a `Rejected`, not an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderOptions:
    """What a user may say about a source.

    Attributes:
        image_folder: Where the images are; None takes the source's own folder.
        max_images: Samples of documents keep no more images than this.
        clip_model: Folder of a CLIP model that places images, or None for the source's matrix.
    """

    image_folder: Path | None = None
    max_images: int | None = None
    clip_model: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRow:
    """One source format.

    Attributes:
        make: Opens a source; raises ValueError for one that is not of this format.
        description: One line for `--help`.
        max_tiles: Tiles of an image as the published training had them, None for no bound.
        licence: Of the published data set, None where the format is general.
    """

    make: Callable[[Path, ReaderOptions], Reader]
    description: str
    max_tiles: int | None = None
    licence: str | None = None
