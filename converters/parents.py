"""Reading the configurations of the models that NVILA is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from transformers import PretrainedConfig

from converters.families import read_config

ConfigT = TypeVar("ConfigT", bound=PretrainedConfig)


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
