"""Greedy answers of an exported model, with transformers only."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForImageTextToText, AutoProcessor

from evaluation.families import AnswerFamily, family_of, read_model_type
from evaluation.query import IMAGE_PLACEHOLDER, Query

Progress = Callable[[int, int], None]


def open_processor(
    hf_directory: Path | str, trust_remote_code: bool = False
) -> tuple[AnswerFamily, Any]:
    """Opens an exported directory; the weights are not read.

    Args:
        hf_directory: The exported directory.
        trust_remote_code: Whether to run code in the directory that is not a copy of this
            repository's.

    Returns:
        The family and the processor.

    Raises:
        ValueError: If the directory is not an export of a known family, or has other code and
            ``trust_remote_code`` is not set.
    """
    directory = Path(hf_directory)
    family = family_of(read_model_type(directory), str(directory))
    if not trust_remote_code:
        family.check_directory(directory)
    processor = AutoProcessor.from_pretrained(
        directory, trust_remote_code=family.runs_directory_code
    )
    return family, processor


def load(
    hf_directory: Path | str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Loads the model and the processor of an exported directory.

    Args:
        hf_directory: The exported directory.
        device: Device of the model.
        dtype: Type of the weights.
        trust_remote_code: As for ``open_processor``.

    Returns:
        The model in evaluation mode and the processor.

    Raises:
        ValueError: As ``open_processor``.
    """
    family, processor = open_processor(hf_directory, trust_remote_code)
    model = AutoModelForImageTextToText.from_pretrained(
        hf_directory, trust_remote_code=family.runs_directory_code, torch_dtype=dtype
    )
    return model.to(device).eval(), processor


def check_query(family: AnswerFamily, processor: Any, query: Query) -> None:
    """Refuses a query that the model could not be asked.

    Raises:
        ValueError: If placeholders and images differ in number, or the chat template refuses the
            conversation.
    """
    placeholders = sum(message["content"].count(IMAGE_PLACEHOLDER) for message in query.messages)
    if placeholders != len(query.images):
        raise ValueError(
            f"the conversation has {placeholders} {IMAGE_PLACEHOLDER} placeholders for "
            f"{len(query.images)} images; one is needed for each."
        )
    try:
        family.prompt(processor, query)
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses the conversation: {error}") from error


def answer(
    model: Any,
    processor: Any,
    queries: Sequence[Query],
    max_new_tokens: int = 64,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[str]:
    """Answers queries greedily, in batches of about equal length.

    A query's answer is the one that it would get alone.

    Args:
        model: The model that ``load`` returned.
        processor: The processor that ``load`` returned.
        queries: The queries.
        max_new_tokens: Longest answer in tokens.
        batch_size: Queries that are answered together.
        progress: Called after each batch with the queries done and their number.

    Returns:
        One answer per query, in the order of the queries, without surrounding white space.

    Raises:
        ValueError: If ``batch_size`` is not positive, or a query cannot be asked.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not allowed: it must be at least 1")
    family = family_of(model.config.model_type)
    for query in queries:
        check_query(family, processor, query)
    answers = [""] * len(queries)
    done = 0
    for indices in _batches(family, processor, queries, batch_size):
        chosen = [queries[index] for index in indices]
        texts = _answer_batch(family, model, processor, chosen, max_new_tokens)
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
        done += len(indices)
        if progress is not None:
            progress(done, len(queries))
    return answers


def _batches(
    family: AnswerFamily, processor: Any, queries: Sequence[Query], batch_size: int
) -> list[list[int]]:
    """Returns the indices of each batch: of one group, and of about equal length.

    Padding is work, so a group is sorted by what its queries cost.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        groups[family.group(query)].append(index)
    batches = []
    for _, group in sorted(groups.items()):
        group.sort(key=lambda index: family.cost(processor, queries[index]))
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches


def _answer_batch(
    family: AnswerFamily,
    model: Any,
    processor: Any,
    queries: Sequence[Query],
    max_new_tokens: int,
) -> list[str]:
    inputs = family.inputs(processor, queries).to(model.device)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new_tokens = output[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new_tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]
