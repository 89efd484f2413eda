"""Reading the configurations of the models that NVILA is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from transformers import PretrainedConfig

ConfigT = TypeVar("ConfigT", bound=PretrainedConfig)


def read_config(directory: str | Path, argument: str) -> dict:
    """Read config.json of a Hugging Face directory.

    Raises:
        ValueError: it is missing or not JSON.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise ValueError(f"{argument}: {path} does not exist; give a Hugging Face model directory.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{argument}: {path} is not JSON ({error}).") from error


def read_parent_config(
    directory: str | Path, config_class: type[ConfigT], argument: str
) -> ConfigT:
    """Read the configuration of a parent model, also where it is a part of a larger model's.

    Raises:
        ValueError: the directory holds a model of another type.
    """
    description = read_config(directory, argument)
    wanted = config_class.model_type
    if description.get("model_type") == "siglip" and "vision_config" in description:
        description = description["vision_config"]
        description.setdefault("model_type", wanted)
    if description.get("model_type") != wanted:
        raise ValueError(
            f"{argument}: {directory} holds a model of type {description.get('model_type')!r}; "
            f"{wanted} is expected."
        )
    return config_class.from_dict(description)
