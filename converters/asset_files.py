"""The small files of a Hugging Face directory: reading, writing, and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoProcessor, ProcessorMixin

ProcessorT = TypeVar("ProcessorT", bound=ProcessorMixin)
TEMPLATE_FILE, OLDER_TEMPLATE_FILE = "chat_template.jinja", "chat_template.json"


def write_chat_template(assets: Path, template: str, tokenizer_config: dict[str, Any]) -> None:
    """Put a template into each of the places that readers look in.

    Args:
        assets: the directory.
        template: Jinja2.
        tokenizer_config: content of tokenizer_config.json; rewritten only if it changes.
    """
    (assets / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    write_json(assets / OLDER_TEMPLATE_FILE, {"chat_template": template})
    if tokenizer_config.get("chat_template") != template:
        write_json(assets / "tokenizer_config.json", tokenizer_config | {"chat_template": template})


def read_json(path: Path, source: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        source: what the user gave, for messages.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"hf: {path.name} of {source} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"hf: {path.name} of {source} is not a JSON object.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object as transformers does."""
    path.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def load_processor(assets: Path, source: str, processor_class: type[ProcessorT]) -> ProcessorT:
    """Load tokenizer and processor.

    Raises:
        ValueError: transformers cannot, or they are of another class.
    """
    try:
        processor = AutoProcessor.from_pretrained(assets)
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"hf: transformers cannot load the tokenizer and processor of {source} ({reason})."
        ) from error
    if not isinstance(processor, processor_class):
        raise ValueError(
            f"hf: {source} has a {type(processor).__name__}; a {processor_class.__name__} is "
            "expected."
        )
    return processor


def require_files(assets: Path, names: Sequence[str], source: str) -> None:
    """Refuse a directory that lacks a file.

    Raises:
        ValueError: it does.
    """
    missing = [name for name in names if not (assets / name).is_file()]
    if missing:
        raise ValueError(f"hf: {source} lacks {', '.join(missing)}; a server needs every one.")


def require_fit(source: str, wanted: Sequence[tuple[str, Any, Any, str]]) -> None:
    """Compare what the processor does with what the model takes.

    Args:
        source: what the user gave, for messages.
        wanted: name, value of the processor, value that is expected, field of config.json.

    Raises:
        ValueError: two differ.
    """
    for name, found, expected, field in wanted:
        if found != expected:
            raise ValueError(
                f"hf: {name} {found} of {source} does not fit {field} of config.json, which asks "
                f"for {expected}."
            )
