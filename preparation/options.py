"""What a user asks of `prepare`, checked before anything is read."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preparation.languages import LANGUAGES
from preparation.source import ReaderOptions

MEGABYTE = 1_000_000
# Four bands of 16 bits are searched; above this a search costs more than comparing all.
MOST_NEAR_DUPLICATE_BITS = 15
SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """What keeps a sample out.

    Attributes:
        max_text_characters: Longest text, placeholders of images not counted.
        min_image_side: Shortest side of any image, in pixels.
        max_image_side: Longest side of any image, in pixels.
        max_image_pixels: Larger images are taken for decompression bombs; the default is also the
            bound of training.
        language: Code of the only language to keep, or None.
        min_similarity: Least similarity of any image to its text, or None.
        near_duplicate_bits: Images whose perceptual hashes differ in at most so many of 64 bits
            are the same picture; None compares no pictures.
    """

    max_text_characters: int = 5_000
    min_image_side: int = 10
    max_image_side: int = 16_000
    max_image_pixels: int = 89_478_485
    language: str | None = None
    min_similarity: float | None = None
    near_duplicate_bits: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_text_characters", "min_image_side", "max_image_side", "max_image_pixels"):
            _check_positive(name, getattr(self, name))
        if self.min_image_side > self.max_image_side:
            raise ValueError(
                f"min_image_side: {self.min_image_side} is more than max_image_side, which is "
                f"{self.max_image_side}."
            )
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(
                f"language: {self.language!r} cannot be told from others; allowed are "
                f"{', '.join(sorted(LANGUAGES))}."
            )
        bits = self.near_duplicate_bits
        if bits is not None and not 0 <= bits <= MOST_NEAR_DUPLICATE_BITS:
            raise ValueError(
                f"near_duplicate_bits: {bits} is not allowed; give 0 to {MOST_NEAR_DUPLICATE_BITS}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """A request.

    Attributes:
        source: The file or folder to read.
        format: Its format's name.
        out: The folder of the shards.
        jobs: Processes; it does not change what is written.
        shard_megabytes: About the size of a shard.
        samples_per_shard: A shard holds no more samples than this, or None.
        filters: What keeps a sample out.
        exclude: Lists of samples to leave out.
        split: Shares of the shards for train, val and test.
        tokenizer: Folder of a tokenizer that texts are counted with for the report, or None.
        max_tiles: Into how many tiles training may cut an image: 0 for no bound, None for what
            the format says.
        licence: Of the data set, or None for what the records or the format say.
        reader: What the reader of the source must know.
        check_free_space: Refuse to start where the disk may be too small.
    """

    source: Path
    format: str
    out: Path
    jobs: int = 1
    shard_megabytes: int = 512
    samples_per_shard: int | None = None
    filters: FilterOptions = field(default_factory=FilterOptions)
    exclude: tuple[Path, ...] = ()
    split: tuple[float, ...] = (1.0,)
    tokenizer: Path | None = None
    max_tiles: int | None = None
    licence: str | None = None
    reader: ReaderOptions = field(default_factory=ReaderOptions)
    check_free_space: bool = True

    def __post_init__(self) -> None:
        for name in ("jobs", "shard_megabytes"):
            _check_positive(name, getattr(self, name))
        if self.samples_per_shard is not None:
            _check_positive("samples_per_shard", self.samples_per_shard)
        if self.max_tiles is not None and self.max_tiles < 0:
            raise ValueError(f"max_tiles: {self.max_tiles} is negative; 0 stands for no bound.")
        _check_split(self.split)
        if not self.source.exists():
            raise ValueError(f"source: {self.source} does not exist.")
        if self.tokenizer is not None and not (self.tokenizer / "tokenizer.json").is_file():
            raise ValueError(
                f"tokenizer: {self.tokenizer} has no tokenizer.json; give the folder of a fast "
                f"tokenizer of transformers."
            )

    @property
    def shard_bytes(self) -> int:
        """About the size of a shard in bytes."""
        return self.shard_megabytes * MEGABYTE

    def what_counts(self) -> dict[str, Any]:
        """All that the output depends on besides the source itself, as JSON values."""
        values = asdict(self)
        for name in ("out", "jobs", "exclude", "check_free_space"):
            del values[name]
        values["source"] = self.source.resolve()
        values["exclude"] = [_digest("exclude", path) for path in self.exclude]
        values["split"] = list(self.split)
        if self.tokenizer is not None:
            values["tokenizer"] = _digest("tokenizer", self.tokenizer / "tokenizer.json")
        return _plain(values)


def parse_split(text: str) -> tuple[float, ...]:
    """Reads `0.98,0.01,0.01`.

    Raises:
        ValueError: These are no numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"split: {text!r} is not one to three numbers with commas, as 0.98,0.01,0.01."
        ) from None


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: {value} is not allowed; give 1 or more.")


def _check_split(split: tuple[float, ...]) -> None:
    # Written so that a value that is no number fails too.
    if not (
        1 <= len(split) <= len(SPLIT_NAMES)
        and all(0 <= share < float("inf") for share in split)
        and sum(split) > 0
    ):
        raise ValueError(
            f"split: {','.join(map(str, split))} is not allowed; give one to three shares, for "
            f"{', '.join(SPLIT_NAMES)}, none negative and not all 0."
        )


def _digest(argument: str, path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{argument}: {path} cannot be read: {error.strerror}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, Path) else value
