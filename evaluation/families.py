"""What the evaluation knows of each family: its prompts, its batches, the code of its directories.

A family is chosen by the `model_type` of config.json.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import BatchFeature

from evaluation.query import Query, image_size, open_image
from models.hf_code.tiling_nvila_lite import tile_count
from models.llava.prompt import chat_message as llava_message
from models.llava.prompt import takes_parts
from models.mllama.prompt import TEMPLATE_ARGUMENTS, chat_message
from models.remote_code import require_known_code


@dataclass(frozen=True, kw_only=True)
class AnswerFamily:
    """How the models of a family are asked.

    Attributes:
        check_directory: Refuses a directory whose code is not known; called unless the user
            trusts it.
        runs_directory_code: Whether transformers needs the code in the directory.
        prompt: Renders a query with the chat template.
        inputs: Makes the model's inputs from queries of one group.
        group: Only queries of equal groups may share a batch.
        cost: Orders queries of a group, so that a batch has equals.
    """

    check_directory: Callable[[Path], None]
    runs_directory_code: bool
    prompt: Callable[[Any, Query], str]
    inputs: Callable[[Any, Sequence[Query]], BatchFeature]
    group: Callable[[Query], int]
    cost: Callable[[Any, Query], tuple[int, int]]


def family_of(model_type: str | None, directory: str = "the model") -> AnswerFamily:
    """Returns the family of a model type.

    Raises:
        ValueError: If there is none.
    """
    if model_type is None or model_type not in FAMILIES:
        raise ValueError(
            f"hf: {directory} holds a model of type {model_type!r}; "
            f"{' or '.join(FAMILIES)} is expected."
        )
    return FAMILIES[model_type]


def read_model_type(directory: Path) -> str | None:
    """Returns the `model_type` of a directory's config.json.

    Raises:
        ValueError: If there is no such file, or it is not a JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"hf: {directory} must be a directory with a config.json.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"hf: {path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"hf: {path} is not a JSON object.")
    return content.get("model_type")


def _text_length(query: Query) -> int:
    return sum(len(message["content"]) for message in query.messages)


def _nvila_prompt(processor: Any, query: Query) -> str:
    return processor.apply_chat_template(query.messages, add_generation_prompt=True)


def _nvila_inputs(processor: Any, queries: Sequence[Query]) -> BatchFeature:
    return processor.apply_chat_template(
        [query.messages for query in queries],
        images=[
            [open_image(source).convert("RGB") for source in query.images] for query in queries
        ],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )


def _nvila_cost(processor: Any, query: Query) -> tuple[int, int]:
    sizes = [image_size(source) for source in query.images]
    tiles = sum(
        tile_count(width, height, processor.tile_size, processor.max_tiles)
        for width, height in sizes
    )
    return tiles, _text_length(query)


def _llava_messages(processor: Any, query: Query) -> list[dict[str, Any]]:
    parts = takes_parts(processor.apply_chat_template)
    return [llava_message(m["role"], m["content"], parts) for m in query.messages]


def _llava_prompt(processor: Any, query: Query) -> str:
    messages = _llava_messages(processor, query)
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def _llava_inputs(processor: Any, queries: Sequence[Query]) -> BatchFeature:
    images = [open_image(source).convert("RGB") for query in queries for source in query.images]
    texts = [_llava_prompt(processor, query) for query in queries]
    # Templates of the published models leave the first token to the tokenizer.
    begin = processor.tokenizer.bos_token
    has_begin = bool(begin) and all(text.startswith(begin) for text in texts)
    # What generate() appends follows the last column, so the padding stands in front.
    return processor(
        text=texts,
        images=images or None,
        padding=True,
        padding_side="left",
        add_special_tokens=not has_begin,
        return_tensors="pt",
    )


def _llava_cost(processor: Any, query: Query) -> tuple[int, int]:
    return len(query.images), _text_length(query)


def _mllama_prompt(processor: Any, query: Query) -> str:
    messages = [chat_message(message["role"], message["content"]) for message in query.messages]
    return processor.apply_chat_template(messages, add_generation_prompt=True, **TEMPLATE_ARGUMENTS)


def _mllama_inputs(processor: Any, queries: Sequence[Query]) -> BatchFeature:
    # Not converted here: the processor puts what is transparent on white, as in training.
    images = [[open_image(source) for source in query.images] for query in queries]
    # What generate() appends follows the last column, so the padding stands in front. The processor
    # finds the image tokens in the padded ids, and its cross-attention mask fits them.
    processor.tokenizer.padding_side = "left"
    return processor(
        text=[_mllama_prompt(processor, query) for query in queries],
        images=images if any(images) else None,
        padding=True,
        # The template has printed <|begin_of_text|>.
        add_special_tokens=False,
        return_tensors="pt",
    )


def _mllama_group(query: Query) -> int:
    # transformers lets text before the first image see every vision token of its row, those of the
    # empty images too that fill the row up to the batch's largest number of images; and its
    # processor refuses rows without image beside rows with one. So the number has to be the same.
    return len(query.images)


def _mllama_cost(processor: Any, query: Query) -> tuple[int, int]:
    # An image takes max_image_tiles tiles whatever its size is.
    return 0, _text_length(query)


_LLAVA = AnswerFamily(
    check_directory=lambda directory: None,
    runs_directory_code=False,
    prompt=_llava_prompt,
    inputs=_llava_inputs,
    group=lambda query: 0,
    cost=_llava_cost,
)

FAMILIES: dict[str, AnswerFamily] = {
    "nvila_lite": AnswerFamily(
        check_directory=require_known_code,
        runs_directory_code=True,
        prompt=_nvila_prompt,
        inputs=_nvila_inputs,
        group=lambda query: 0,
        cost=_nvila_cost,
    ),
    "llava": _LLAVA,
    "neva_llava": replace(_LLAVA, check_directory=require_known_code, runs_directory_code=True),
    "mllama": AnswerFamily(
        check_directory=lambda directory: None,
        runs_directory_code=False,
        prompt=_mllama_prompt,
        inputs=_mllama_inputs,
        group=_mllama_group,
        cost=_mllama_cost,
    ),
}
