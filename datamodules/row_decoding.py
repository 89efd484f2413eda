"""Decoding of the samples of a packed row."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from datamodules.bad_samples import BadSampleLog
from datamodules.collate import Encoded
from sample_loaders.errors import BadSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """What is left to do for a sample of a row.

    Attributes:
        key: Of the sample.
        source: The data set that it came from.
        decode: Adds the pixels, or raises `BadSample`.
    """

    key: str
    source: str
    decode: Callable[[], Encoded]


def decode_row(
    decodings: Iterable[Decoding], log: BadSampleLog, filler: Callable[[], Encoded]
) -> list[Encoded]:
    """Decodes the samples of a row; where an image is damaged, the row gets shorter.

    Args:
        decodings: Of each sample.
        log: Takes those that are damaged.
        filler: Makes the only sample of a row that would be empty.

    Raises:
        TooManyBadSamples: Too many in a row could not be used.
    """
    decoded = []
    for one in decodings:
        try:
            decoded.append(one.decode())
        except BadSample as error:
            log.skip(one.key, one.source, error)
        else:
            log.accept()
    return decoded or [filler()]
