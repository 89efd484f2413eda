"""What keeps a sample out: a table of small functions, asked in order, the cheapest first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from preparation.images import ImageHeader
from preparation.languages import is_language
from preparation.options import FilterOptions
from preparation.reasons import RejectionReason


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFilter:
    """A question about a sample before its images are opened.

    Attributes:
        reason: What a sample is counted under that fails.
        check: Gets the text, the similarities and the options; returns a sentence, or None.
    """

    reason: RejectionReason
    check: Callable[[str, Sequence[float] | None, FilterOptions], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFilter:
    """A question about each image before its pixels are read.

    Attributes:
        reason: What a sample is counted under that fails.
        check: Gets the header and the options; returns what the image does, or None.
    """

    reason: RejectionReason
    check: Callable[[ImageHeader, FilterOptions], str | None]


def _is_empty(text: str, _similarity: object, _options: FilterOptions) -> str | None:
    return None if text.strip() else "There is no text."


def _is_too_long(text: str, _similarity: object, options: FilterOptions) -> str | None:
    if len(text) <= options.max_text_characters:
        return None
    return f"The text has {len(text)} characters, more than {options.max_text_characters}."


def _is_dissimilar(
    _text: str, similarity: Sequence[float] | None, options: FilterOptions
) -> str | None:
    if options.min_similarity is None or similarity is None:
        return None
    # Written so that a value that is no number fails too.
    if all(value >= options.min_similarity for value in similarity):
        return None
    return f"The similarity is {min(similarity):.4g}, less than {options.min_similarity:g}."


def _is_foreign(text: str, _similarity: object, options: FilterOptions) -> str | None:
    if options.language is None or is_language(text, options.language):
        return None
    return f"The text is not in the language {options.language}."


def _is_bomb(header: ImageHeader, options: FilterOptions) -> str | None:
    if header.width * header.height <= options.max_image_pixels:
        return None
    return f"has {header.width} x {header.height} pixels, more than {options.max_image_pixels}"


def _is_small(header: ImageHeader, options: FilterOptions) -> str | None:
    if min(header.width, header.height) >= options.min_image_side:
        return None
    return f"is {header.width} x {header.height}, with a side below {options.min_image_side} pixels"


def _is_large(header: ImageHeader, options: FilterOptions) -> str | None:
    if max(header.width, header.height) <= options.max_image_side:
        return None
    return f"is {header.width} x {header.height}, with a side above {options.max_image_side} pixels"


def _is_animated(header: ImageHeader, _options: FilterOptions) -> str | None:
    return "is animated" if header.is_animated else None


TEXT_FILTERS = (
    TextFilter(reason=RejectionReason.EMPTY_TEXT, check=_is_empty),
    TextFilter(reason=RejectionReason.TEXT_TOO_LONG, check=_is_too_long),
    TextFilter(reason=RejectionReason.LOW_SIMILARITY, check=_is_dissimilar),
    TextFilter(reason=RejectionReason.OTHER_LANGUAGE, check=_is_foreign),
)
HEADER_FILTERS = (
    HeaderFilter(reason=RejectionReason.DECOMPRESSION_BOMB, check=_is_bomb),
    HeaderFilter(reason=RejectionReason.IMAGE_TOO_SMALL, check=_is_small),
    HeaderFilter(reason=RejectionReason.IMAGE_TOO_LARGE, check=_is_large),
    HeaderFilter(reason=RejectionReason.ANIMATED_IMAGE, check=_is_animated),
)
