"""Greedy answers of an exported model, with transformers only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from models.nvila.hf_code.prompt_nvila_lite import IMAGE_TOKEN
from models.nvila.hf_code.tiling_nvila_lite import tile_count
from models.nvila.remote_code import require_known_code

Progress = Callable[[int, int], None]
ImageSource = Image.Image | Path | str


@dataclass(frozen=True)
class Query:
    """A conversation that waits for an answer, and its images.

    Attributes:
        messages: Messages with ``role`` and a string ``content``; ``<image>`` stands for an image.
        images: PIL images or paths, one for each placeholder, in order.
    """

    messages: Sequence[dict[str, str]]
    images: Sequence[ImageSource] = ()

    @classmethod
    def ask(cls, question: str, images: Sequence[ImageSource] = ()) -> "Query":
        """Makes a query of one question; images without a placeholder come before it."""
        if IMAGE_TOKEN not in question:
            question = f"{IMAGE_TOKEN}\n" * len(images) + question
        return cls([{"role": "user", "content": question}], images)


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
        trust_remote_code: Whether to run code in the directory that is not a copy of this
            repository's.

    Returns:
        The model in evaluation mode and the processor.

    Raises:
        ValueError: If the directory is not an export, or has other code and
            ``trust_remote_code`` is not set.
    """
    directory = Path(hf_directory)
    if not (directory / "config.json").is_file():
        raise ValueError(f"hf: {directory} must be a directory with a config.json.")
    if not trust_remote_code:
        require_known_code(directory)
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(
        directory, trust_remote_code=True, torch_dtype=dtype
    )
    return model.to(device).eval(), processor


def answer(
    model: Any,
    processor: Any,
    queries: Sequence[Query],
    max_new_tokens: int = 64,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[str]:
    """Answers queries greedily, in batches of about equal length.

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
        ValueError: If ``batch_size`` is not positive, or a query's placeholders and images do not
            match in number.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not allowed: it must be at least 1")
    # Padding is work: queries of equal length share a batch.
    lengths = [_length(query, processor) for query in queries]
    order = sorted(range(len(queries)), key=lengths.__getitem__)
    answers = [""] * len(queries)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        texts = _answer_batch(
            model, processor, [queries[index] for index in indices], max_new_tokens
        )
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
        if progress is not None:
            progress(start + len(indices), len(queries))
    return answers


def _answer_batch(
    model: Any, processor: Any, queries: Sequence[Query], max_new_tokens: int
) -> list[str]:
    inputs = processor.apply_chat_template(
        [query.messages for query in queries],
        images=[[_open(source) for source in query.images] for query in queries],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    ).to(model.device)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new_tokens = output[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new_tokens, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    with Image.open(source) as image:
        return image.convert("RGB")


def _length(query: Query, processor: Any) -> tuple[int, int]:
    """Orders queries by what they cost: first their tiles, then their text."""
    tiles = 0
    for source in query.images:
        if isinstance(source, Image.Image):
            width, height = source.size
        else:
            # Only the header is read here.
            with Image.open(source) as image:
                width, height = image.size
        tiles += tile_count(width, height, processor.tile_size, processor.max_tiles)
    return tiles, sum(len(message["content"]) for message in query.messages)
