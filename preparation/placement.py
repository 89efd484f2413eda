r"""Where images stand in the sentences of a document, and the text that follows from it.

As published for MMC4 and MOMIJI by github.com/NVlabs/VILA and in Turing's account of Heron-NVILA,
an image stands just before the sentence that it fits best: `<image>\n` before the sentence,
sentences joined by a space, no space around a placeholder, and no image behind the last text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sample_loaders.conversation import IMAGE_PLACEHOLDER

_MARK = f"{IMAGE_PLACEHOLDER}\n"
_SPACED_MARK = re.compile(f" *{_MARK} *")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one image stands.

    Attributes:
        image: Its number in the document.
        sentence: The number of its sentence.
        offset: The character of the sentence that it stands before.
        similarity: How well it fits the sentence, None where nothing says so.
    """

    image: int
    sentence: int
    offset: int = 0
    similarity: float | None = None


def similarity_rows(matrix: Any, images: int, sentences: int) -> list[np.ndarray | None]:
    """Takes a similarity matrix apart, row by row, as far as it can be trusted.

    A matrix with more rows than images tells nothing, as it does not say which rows are theirs; one
    with fewer belongs to the first images. A row of another length than there are sentences, or of
    other things than finite numbers, counts as missing.

    Args:
        matrix: A list of lists, or an array; float [images, sentences].
        images: How many images there are.
        sentences: How many sentences there are.

    Returns:
        For each image its row, or None.
    """
    given = list(matrix) if isinstance(matrix, list | tuple | np.ndarray) else []
    if len(given) > images:
        return [None] * images
    rows: list[np.ndarray | None] = []
    for row in given:
        try:
            numbers = np.asarray(row, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.zeros(0)
        fits = numbers.shape == (sentences,) and sentences > 0 and np.isfinite(numbers).all()
        rows.append(numbers if fits else None)
    return rows + [None] * (images - len(rows))


def place_by_similarity(image: int, row: np.ndarray, sentences: Sequence[str]) -> Placement | None:
    """Places an image before the sentence that it is most similar to, the first of equals.

    Args:
        image: The number of the image.
        row: float [sentences].
        sentences: The sentences; blank ones take no image.

    Returns:
        The place, None where all sentences are blank.
    """
    filled = [number for number, sentence in enumerate(sentences) if sentence.strip()]
    if not filled:
        return None
    best = max(filled, key=lambda number: row[number])
    return Placement(image=image, sentence=best, similarity=float(row[best]))


def without_trailing(placements: Sequence[Placement], sentences: Sequence[str]) -> list[Placement]:
    """Leaves out images that no text follows."""
    return [
        place
        for place in placements
        if sentences[place.sentence][place.offset :].strip()
        or any(sentence.strip() for sentence in sentences[place.sentence + 1 :])
    ]


def most_similar_first(placements: Sequence[Placement]) -> list[Placement]:
    """Sorts the images that fit best to the front; without a similarity they keep their order."""
    return sorted(
        placements,
        key=lambda place: (place.similarity is None, -(place.similarity or 0.0), place.image),
    )


def in_text_order(placements: Sequence[Placement]) -> list[Placement]:
    """Sorts images as the text has them; those of one place keep their order."""
    return sorted(placements, key=lambda place: (place.sentence, place.offset, place.image))


def write_document(sentences: Sequence[str], placements: Sequence[Placement]) -> str:
    """Writes the text with a placeholder for each image.

    Args:
        sentences: The sentences; they hold no placeholder.
        placements: The images, in the order of the text.
    """
    pieces = list(sentences)
    for place in reversed(placements):
        sentence = pieces[place.sentence]
        pieces[place.sentence] = sentence[: place.offset] + _MARK + sentence[place.offset :]
    text = " ".join(piece for piece in pieces if piece.strip(" "))
    return _SPACED_MARK.sub(_MARK, text).strip()
