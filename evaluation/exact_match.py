"""Exact match on a LLaVA file: the last answer of each conversation is the truth."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from evaluation.families import AnswerFamily
from evaluation.generation import Progress, answer, check_query
from evaluation.query import IMAGE_PLACEHOLDER, Query, open_image

_ROLES = {
    "system": "system",
    "システム": "system",
    "human": "user",
    "user": "user",
    "ユーザー": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "アシスタント": "assistant",
}


@dataclass(frozen=True)
class Sample:
    """A question with its truth.

    Attributes:
        sample_id: The ``id`` of the record, or its number in the file (from 1).
        query: The conversation up to the last question, and the paths of its images.
        truth: The last answer.
    """

    sample_id: str
    query: Query
    truth: str


@dataclass(frozen=True)
class Row:
    """One answered question; ``images`` are the paths that the model was shown."""

    id: str
    question: str
    answer: str
    truth: str
    correct: bool
    images: tuple[str, ...]


@dataclass(frozen=True)
class ExactMatch:
    """The rows in the order of the file, and the share that is correct (0 to 1)."""

    rows: tuple[Row, ...]
    score: float


def exact_match(
    model: Any,
    processor: Any,
    data: Path | str,
    image_folder: Path | str,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    limit: int | None = None,
    shuffle_images: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> ExactMatch:
    """Asks the last question of every conversation and compares the answers with the truth.

    Args:
        model: The model that ``evaluation.generation.load`` returned.
        processor: The processor that it returned.
        data: JSON array or JSONL file of ``{id, image, conversations}`` records; ``images`` is
            another name of ``image``.
        image_folder: Folder that the image paths are relative to.
        max_new_tokens: Longest answer in tokens.
        batch_size: Questions that are answered together.
        limit: Number of records to use, from the first; all when not given.
        shuffle_images: Whether every question gets the images of another one with as many images,
            which shows what the model knows without seeing.
        seed: Seed of the shuffle.
        progress: Called after each batch with the questions done and their number.

    Raises:
        ValueError: If the file cannot be read or has no usable record, or the images cannot be
            shuffled.
    """
    samples = prepare(data, image_folder, limit, shuffle_images, seed)
    return score(
        model,
        processor,
        samples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )


def prepare(
    data: Path | str,
    image_folder: Path | str,
    limit: int | None = None,
    shuffle_images: bool = False,
    seed: int = 0,
) -> list[Sample]:
    """Reads the questions and looks at every image; needs no model.

    A damaged file shows here, before minutes of loading and answering. The arguments are those of
    ``exact_match``.

    Raises:
        ValueError: If the data cannot be used.
    """
    samples = read_samples(Path(data), Path(image_folder), limit)
    for image in dict.fromkeys(image for sample in samples for image in sample.query.images):
        open_image(image)
    return shuffled_images(samples, seed) if shuffle_images else samples


def check_samples(family: AnswerFamily, processor: Any, samples: Sequence[Sample]) -> None:
    """Refuses samples that the model could not be asked; needs its processor only.

    Raises:
        ValueError: If placeholders and images of a sample differ in number, or the chat template
            refuses its conversation.
    """
    for sample in samples:
        try:
            check_query(family, processor, sample.query)
        except ValueError as error:
            raise ValueError(f"data: sample {sample.sample_id!r}: {error}") from error


def score(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> ExactMatch:
    """Answers prepared samples and compares; the arguments are those of ``exact_match``."""
    queries = [sample.query for sample in samples]
    answers = answer(model, processor, queries, max_new_tokens, batch_size, progress)
    rows = tuple(_row(sample, text) for sample, text in zip(samples, answers, strict=True))
    return ExactMatch(rows, sum(row.correct for row in rows) / len(rows))


def read_samples(data: Path, image_folder: Path, limit: int | None = None) -> list[Sample]:
    """Reads the questions of a LLaVA file, a JSON array or JSONL.

    Args:
        data: The file.
        image_folder: Folder that the image paths are relative to.
        limit: Number of records to read; all when not given.

    Raises:
        ValueError: If ``limit`` is not positive, the file cannot be read, a record is malformed,
            an image is missing, or there is no record.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} is not allowed; at least 1 is needed.")
    try:
        with data.open(encoding="utf-8") as file:
            records = _array(file, data) if _begins_array(file) else _lines(file, data)
            samples = [
                _sample(record, image_folder, place, str(number))
                for number, place, record in islice(records, limit)
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data: {data} cannot be read ({error}).") from error
    if not samples:
        raise ValueError(f"data: {data} has no record; one is needed.")
    return samples


def _begins_array(file: TextIO) -> bool:
    """Whether the first character that is not white space opens a JSON array."""
    first = next((line.lstrip()[0] for line in file if line.strip()), "")
    file.seek(0)
    return first == "["


def _array(file: TextIO, data: Path) -> Iterator[tuple[int, str, Any]]:
    """Yields the number, the place and the value of each record of a JSON array."""
    try:
        records = json.load(file)
    except json.JSONDecodeError as error:
        raise ValueError(f"data: {data} is not a JSON array: {error}") from error
    for number, record in enumerate(records, start=1):
        yield number, f"record {number} of {data}", record


def _lines(file: TextIO, data: Path) -> Iterator[tuple[int, str, Any]]:
    """Yields the line number, the place and the value of each record of a JSONL file."""
    for number, line in enumerate(file, start=1):
        place = f"{data}:{number}"
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"data: {place} is not JSON: {error}") from error
            yield number, place, record


def shuffled_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Gives every sample the images of another one with the same number of images.

    Samples without images stay as they are.

    Raises:
        ValueError: If a sample is the only one with its number of images.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[len(sample.query.images)].append(index)
    shuffled = list(samples)
    generator = random.Random(seed)
    for count, group in sorted(groups.items()):
        if count == 0:
            continue
        if len(group) == 1:
            raise ValueError(
                f"sample {samples[group[0]].sample_id!r} is the only one with {count} images: "
                "two are needed to shuffle"
            )
        generator.shuffle(group)
        # A cycle through a shuffled group leaves no sample with its own images.
        for taker, giver in zip(group, group[1:] + group[:1], strict=True):
            query = replace(samples[taker].query, images=samples[giver].query.images)
            shuffled[taker] = replace(samples[taker], query=query)
    return shuffled


def _sample(record: Any, image_folder: Path, place: str, default_id: str) -> Sample:
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or len(turns) < 2:
        raise ValueError(f"data: {place} has no conversation: a question and an answer are needed")
    messages = [_message(turn, place) for turn in turns]
    roles = [message["role"] for message in messages]
    dialogue = roles[1:] if roles[0] == "system" else roles
    if not dialogue or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise ValueError(
            f"data: {place} has the roles {roles}: questions and answers must alternate"
        )
    images = _images(record, image_folder, place)
    *messages, truth = messages
    if images and not any(IMAGE_PLACEHOLDER in message["content"] for message in messages):
        question = next(message for message in messages if message["role"] == "user")
        question["content"] = f"{IMAGE_PLACEHOLDER}\n" * len(images) + question["content"]
    sample_id = str(record.get("id", default_id))
    return Sample(sample_id, Query(messages, images), truth["content"].strip())


def _message(turn: Any, place: str) -> dict[str, str]:
    speaker, value = (
        (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None,) * 2
    )
    if speaker not in _ROLES or not isinstance(value, str):
        raise ValueError(
            f"data: {place} has a turn from {speaker!r}: a text from one of "
            f"{', '.join(_ROLES)} is needed"
        )
    return {"role": _ROLES[speaker], "content": value}


def _images(record: dict[str, Any], image_folder: Path, place: str) -> list[str]:
    given = [record[key] for key in ("image", "images") if record.get(key)]
    if len(given) > 1:
        raise ValueError(f'data: {place} has both "image" and "images": one is needed')
    names = given[0] if given else []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"data: {place} has the images {names!r}: a file name or a list of them is needed"
        )
    paths = [image_folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"data: {place} names the image {str(path)!r}, which must be a file")
    return [str(path) for path in paths]


def _row(sample: Sample, text: str) -> Row:
    question = sample.query.messages[-1]["content"]
    images = tuple(str(image) for image in sample.query.images)
    return Row(sample.sample_id, question, text, sample.truth, text == sample.truth, images)
