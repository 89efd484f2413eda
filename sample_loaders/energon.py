"""From the samples of tar shards, as Energon reads them, to conversations and their images."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sample_loaders.conversation import IMAGE_PLACEHOLDER
from sample_loaders.document import Sample, parse_record
from sample_loaders.errors import BadSample, Reason
from sample_loaders.placeholders import with_our_placeholders

RECORD_PART = "json"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSample:
    """A conversation or a document with its images.

    Attributes:
        sample: Its image names are those of `images`.
        images: By name: the bytes of the file as they are in the shard, or, where the data set
            decodes images itself, what it made of them.
    """

    sample: Sample
    images: Mapping[str, Any]


def cook_parts(
    parts: Mapping[str, Any], key: str, source: str, image_token: str = IMAGE_PLACEHOLDER
) -> ShardSample:
    """Reads a crude sample: `json`, and images as `jpg`, or `0.jpg`, `1.png`, ... in this order.

    The JSON part is a LLaVA record or only its list of conversations, a document, or a
    preference. A record may name its images anyhow, as their names are often paths of the place
    that it was packed from, but it must name as many as there are; where the names are those of the
    parts, they choose the order.

    Args:
        parts: Bytes by the part's name, which is the file's name in the shard after its first dot;
            names that start with two underscores are no parts.
        key: The name that the sample goes by.
        source: The name of the data set.
        image_token: What stands for an image in the text.

    Raises:
        BadSample: The sample cannot be used.
    """
    members = sorted((name for name in parts if _is_image(name)), key=_natural_order)
    record = _read_record(parts)
    if isinstance(record, list):
        record = {"conversations": record}
    named = isinstance(record, Mapping) and any(
        record.get(name) is not None for name in ("image", "images")
    )
    if isinstance(record, Mapping) and not named:
        record = {**record, "images": members}
    sample = parse_record(with_our_placeholders(record, image_token), key, source)
    if len(sample.images) != len(members):
        raise BadSample(
            Reason.IMAGE_COUNT,
            f"The record names {len(sample.images)} image(s), but the shard holds {len(members)} "
            f"for it.",
        )
    if set(sample.images) != set(members):
        sample = replace(sample, images=tuple(members))
    return ShardSample(sample=sample, images={name: parts[name] for name in members})


def read_vqa(
    image: Any,
    context: Any,
    answers: Any,
    answer_weights: Any,
    *,
    key: str,
    source: str,
    image_token: str = IMAGE_PLACEHOLDER,
) -> ShardSample:
    """Reads the fields of an Energon VQA sample.

    Args:
        image: A decoded image, a list of them, or None.
        context: A question with one answer, or a list of questions with as many answers.
        answers: The answers; for a single question they are alternatives, and the one with the
            largest weight, or else the first, is taken.
        answer_weights: Weights of alternative answers, or None.
        key: The name that the sample goes by.
        source: The name of the data set.
        image_token: What stands for an image in the questions.

    Raises:
        BadSample: The sample cannot be used.
    """
    if isinstance(context, str):
        questions, replies = [context], [_best_answer(answers, answer_weights)]
    else:
        questions, replies = _texts(context, "context"), _texts(answers, "answers")
    if len(questions) != len(replies):
        raise BadSample(
            Reason.NOT_ALTERNATING,
            f"The sample has {len(questions)} question(s) and {len(replies)} answer(s).",
        )
    turns = []
    for question, reply in zip(questions, replies, strict=True):
        turns.append({"from": "human", "value": question})
        turns.append({"from": "gpt", "value": reply})
    given = [] if image is None else list(image) if isinstance(image, list | tuple) else [image]
    images = _named(given)
    record = {"conversations": turns, "images": list(images)}
    sample = parse_record(with_our_placeholders(record, image_token), key, source)
    return ShardSample(sample=sample, images=images)


def read_matched(
    images: Sequence[Any],
    texts: Sequence[str],
    matched_text_indices: Sequence[int] | None,
    *,
    image_following_text: bool,
    key: str,
    source: str,
) -> ShardSample:
    """Reads the fields of an Energon sample whose images are matched to texts, as in MMC4.

    Makes one document of it. Several images may be matched to one text; NeVA's own encoder loses
    all but the first.

    Args:
        images: Decoded images.
        texts: Sentences or paragraphs, in order.
        matched_text_indices: For each image the number of its text.
        image_following_text: Whether an image comes after its text, or before it.
        key: The name that the sample goes by.
        source: The name of the data set.

    Raises:
        BadSample: The sample cannot be used.
    """
    texts = _texts(texts, "texts")
    places = list(matched_text_indices or ())
    if len(places) != len(images):
        raise BadSample(
            Reason.IMAGE_COUNT,
            f"The sample has {len(images)} image(s), of which {len(places)} are matched to a text.",
        )
    if any(not 0 <= place < len(texts) for place in places):
        raise BadSample(
            Reason.WRONG_TYPE,
            f"An image is matched to one of the texts {places}, but there are {len(texts)}.",
        )
    if any(IMAGE_PLACEHOLDER in text for text in texts):
        raise BadSample(Reason.IMAGE_COUNT, f"A text holds {IMAGE_PLACEHOLDER} itself.")
    order = sorted(range(len(images)), key=lambda number: places[number])
    pieces = []
    for number, text in enumerate(texts):
        own = [IMAGE_PLACEHOLDER] * places.count(number)
        lines = [text, *own] if image_following_text else [*own, text]
        pieces.append("\n".join(lines) + ("\n" if own and image_following_text else ""))
    named = _named([images[number] for number in order])
    record = {"document": _joined(pieces), "images": list(named)}
    return ShardSample(sample=parse_record(record, key, source), images=named)


def _joined(pieces: Sequence[str]) -> str:
    """Puts a space between texts, and none behind a line that an image closes."""
    joined = ""
    for piece in pieces:
        joined += piece if not joined or joined.endswith("\n") else f" {piece}"
    return joined.rstrip("\n")


def _named(images: Sequence[Any]) -> dict[str, Any]:
    return {f"image {number}": image for number, image in enumerate(images)}


def _is_image(name: str) -> bool:
    return not name.startswith("__") and name.lower().rpartition(".")[2] in IMAGE_EXTENSIONS


def _natural_order(name: str) -> list[str | int]:
    """Sorts 10.jpg after 2.jpg; text and numbers stand in turns, so they are never compared."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _read_record(parts: Mapping[str, Any]) -> object:
    if RECORD_PART not in parts:
        names = sorted(name for name in parts if not name.startswith("__"))
        raise BadSample(
            Reason.MISSING_KEY,
            f"The sample has no part {RECORD_PART}, only {', '.join(names) or 'none'}.",
        )
    try:
        return json.loads(parts[RECORD_PART])
    except ValueError as error:  # both of JSON and of UTF-8
        raise BadSample(Reason.INVALID_JSON, f"The part json is not JSON: {error}.") from error


def _texts(value: Any, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise BadSample(
            Reason.WRONG_TYPE,
            f'"{name}" is neither a string nor a list of strings: {repr(value)[:200]}.',
        )
    return list(texts)


def _best_answer(answers: Any, weights: Sequence[Any] | None) -> str:
    if answers is None:
        raise BadSample(Reason.NO_FINAL_ANSWER, "The sample has no answer.")
    texts = _texts(answers, "answers")
    if not texts:
        raise BadSample(Reason.NO_FINAL_ANSWER, "The list of answers is empty.")
    if weights is None:
        return texts[0]
    if len(weights) != len(texts):
        raise BadSample(
            Reason.WRONG_TYPE,
            f"The sample has {len(texts)} answer(s) and {len(weights)} weight(s) for them.",
        )
    return texts[max(range(len(texts)), key=lambda number: float(weights[number]))]
