"""One sample: kept or rejected, and if kept, what of it goes into a shard."""

import hashlib
from dataclasses import dataclass
from typing import Any

from preparation.exclusion import KEY_DIGITS, Exclusions
from preparation.filters import HEADER_FILTERS, TEXT_FILTERS
from preparation.images import (
    ImageHeader,
    OpenedImage,
    UnreadableImage,
    decode,
    open_image,
    perceptual_hash,
    stored_file,
)
from preparation.options import PrepareOptions
from preparation.reasons import RejectionReason
from preparation.records import BadRecord, check_record, content_bytes, json_part, text_of
from preparation.source import RawImage, RawSample, Rejected

# The record of a sample in its source, for people that look into a shard.
SOURCE_KEY = "source_key"


class _Refusal(Exception):  # noqa: N818 - the end of one sample, caught here
    def __init__(self, reason: RejectionReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedImage:
    """An image that is kept.

    Attributes:
        header: Its form and size.
        extension: Of its file in the shard.
        data: Its file in the shard.
        bits: Its perceptual hash, or None where there is none or none was asked for.
    """

    header: ImageHeader
    extension: str
    data: bytes
    bits: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A sample that is kept.

    Attributes:
        key: Its name in the shard.
        content: 16 bytes that only samples with the same text and images share.
        text: Its text.
        record: Its JSON part, as an object.
        json: Its JSON part, as bytes.
        images: Its images.
    """

    key: str
    content: bytes
    text: str
    record: dict[str, Any]
    json: bytes
    images: tuple[JudgedImage, ...]

    def parts(self) -> list[tuple[str, bytes]]:
        """Returns the sample's files by extension."""
        images = [(f"{number}.{each.extension}", each.data) for number, each in _count(self.images)]
        return [("json", self.json), *images]


class Judge:
    """Applies all filters that need no other sample.

    Args:
        options: The request.
        exclusions: Samples to leave out.
        max_tiles: What the format says about tiles of an image.
        licence: What the format says about the licence.
    """

    def __init__(
        self,
        options: PrepareOptions,
        exclusions: Exclusions,
        max_tiles: int | None,
        licence: str | None,
    ) -> None:
        self._filters = options.filters
        self._exclusions = exclusions
        self._options = options
        self._max_tiles = max_tiles
        self._licence = licence

    def __call__(self, sample: RawSample) -> Accepted | Rejected:
        """Judges a sample."""
        try:
            return self._judge(sample)
        except _Refusal as refusal:
            return Rejected(key=sample.key, reason=refusal.reason, message=refusal.message)

    def _judge(self, sample: RawSample) -> Accepted:
        if self._exclusions.has_source_key(sample.key):
            raise _Refusal(RejectionReason.EXCLUDED, "It is listed by its key in the source.")
        text = text_of(sample.record)
        self._check_text(sample, text)
        content = _content_hash(sample)
        key = hashlib.blake2b(
            sample.key.encode("utf-8", "surrogatepass") + b"\0" + content,
            digest_size=KEY_DIGITS // 2,
        ).hexdigest()
        if self._exclusions.has_shard_key(key):
            raise _Refusal(RejectionReason.EXCLUDED, f"It is listed as {key}.")
        opened = [self._check_header(image) for image in sample.images]
        images = tuple(
            self._decode(image, file) for image, file in zip(sample.images, opened, strict=True)
        )
        record = self._with_defaults(sample)
        names = [f"{number}.{each.extension}" for number, each in _count(images)]
        try:
            json = json_part(record, names)
        except BadRecord as error:
            raise _Refusal(RejectionReason.INVALID_RECORD, str(error)) from error
        return Accepted(
            key=key, content=content, text=text, record=record, json=json, images=images
        )

    def _check_text(self, sample: RawSample, text: str) -> None:
        if self._filters.min_similarity is not None and sample.images and not sample.similarity:
            raise _Refusal(RejectionReason.LOW_SIMILARITY, "The record has no similarity.")
        for each in TEXT_FILTERS:
            message = each.check(text, sample.similarity, self._filters)
            if message is not None:
                raise _Refusal(each.reason, message)
        try:
            check_record(sample.record, len(sample.images))
        except BadRecord as error:
            raise _Refusal(RejectionReason.INVALID_RECORD, str(error)) from error

    def _check_header(self, image: RawImage) -> OpenedImage:
        try:
            opened = open_image(image.data)
        except UnreadableImage as error:
            raise _unreadable(image, error) from error
        for each in HEADER_FILTERS:
            message = each.check(opened.header, self._filters)
            if message is not None:
                raise _Refusal(each.reason, f"The image {image.name} {message}.")
        return opened

    def _decode(self, image: RawImage, opened: OpenedImage) -> JudgedImage:
        try:
            picture = decode(opened)
            extension, data = stored_file(image.data, opened.header)
        except UnreadableImage as error:
            raise _unreadable(image, error) from error
        wanted = self._filters.near_duplicate_bits is not None
        bits = perceptual_hash(picture) if wanted else None
        return JudgedImage(header=opened.header, extension=extension, data=data, bits=bits)

    def _with_defaults(self, sample: RawSample) -> dict[str, Any]:
        record = {**sample.record, SOURCE_KEY: sample.key}
        tiles = self._options.max_tiles
        if tiles is None:
            tiles = record.get("max_tiles") or self._max_tiles
        licence = self._options.licence or record.get("licence") or self._licence
        for name, value in (("max_tiles", tiles), ("licence", licence)):
            record.pop(name, None)
            if value:
                record[name] = value
        return record


def _content_hash(sample: RawSample) -> bytes:
    digest = hashlib.blake2b(content_bytes(sample.record), digest_size=16)
    for image in sample.images:
        digest.update(hashlib.blake2b(image.data, digest_size=16).digest())
    return digest.digest()


def _unreadable(image: RawImage, error: Exception) -> _Refusal:
    message = f"The image {image.name} cannot be decoded: {error}."
    return _Refusal(RejectionReason.UNREADABLE_IMAGE, message)


def _count(images: tuple[JudgedImage, ...]) -> list[tuple[int, JudgedImage]]:
    return list(enumerate(images))
