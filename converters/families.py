"""The model families by name and by Hugging Face model type.

Standard library only: the command line lists the families without loading any of them.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.family import Family


@dataclass(frozen=True, kw_only=True)
class FamilyEntry:
    """Where a family is found."""

    name: str
    """What the user calls it."""

    model_type: str
    """`model_type` of its config.json."""

    module: str
    class_name: str

    def load(self) -> Family:
        """Import the family's parts."""
        return getattr(importlib.import_module(self.module), self.class_name)()


FAMILIES = {
    entry.name: entry
    for entry in (
        FamilyEntry(
            name="nvila",
            model_type="nvila_lite",
            module="converters.nvila_family",
            class_name="NvilaFamily",
        ),
        FamilyEntry(
            name="mllama",
            model_type="mllama",
            module="converters.mllama_family",
            class_name="MllamaFamily",
        ),
        FamilyEntry(
            name="llava",
            model_type="llava",
            module="converters.llava_family",
            class_name="LlavaFamily",
        ),
        FamilyEntry(
            name="neva",
            model_type="neva_llava",
            module="converters.neva_family",
            class_name="NevaFamily",
        ),
        FamilyEntry(
            name="llava_jp",
            model_type="llava-jp",
            module="converters.llava_jp_family",
            class_name="LlavaJpFamily",
        ),
    )
}


def family_named(name: str) -> Family:
    """Return a family by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in FAMILIES:
        raise ValueError(f"family: {name!r} is unknown; allowed are {', '.join(FAMILIES)}.")
    return FAMILIES[name].load()


def family_of(directory: str | Path, argument: str) -> Family:
    """Return the family of a Hugging Face directory or of a checkpoint's assets.

    Args:
        directory: has a config.json.
        argument: what the user calls it, for the message.

    Raises:
        ValueError: config.json is missing, no JSON, or of no family that is known here.
    """
    found = read_config(directory, argument).get("model_type")
    for entry in FAMILIES.values():
        if entry.model_type == found:
            return entry.load()
    known = " or ".join(entry.model_type for entry in FAMILIES.values())
    raise ValueError(
        f"{argument}: {directory} holds a model of type {found!r}; {known} is expected."
    )


def check_family(directory: Path, hf: str | Path, family: Family) -> None:
    """Refuse a directory of another family.

    Raises:
        ValueError: config.json is missing or of another model type.
    """
    found = read_config(directory, "hf").get("model_type")
    if found != family.model_type:
        raise ValueError(
            f"hf: {hf} holds a model of type {found!r}; {family.model_type} is expected"
            f"{family.hint}."
        )


def read_config(directory: str | Path, argument: str) -> dict:
    """Read config.json of a Hugging Face directory.

    Raises:
        ValueError: it is missing or not a JSON object.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise ValueError(f"{argument}: {path} does not exist; give a Hugging Face model directory.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"{argument}: {path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{argument}: {path} is not a JSON object.")
    return content
