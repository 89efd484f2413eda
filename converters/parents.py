"""Reading the configurations of the models that another one is put together of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PretrainedConfig

from converters.families import read_config

_WHOLES = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
"""Models that have a vision model as a part, and its type."""


def read_parent_config(
    directory: str | Path, config_classes: Sequence[type[PretrainedConfig]], argument: str
) -> PretrainedConfig:
    """Read the configuration of a parent model, also where it is a part of a larger model's.

    Raises:
        ValueError: the directory holds a model of another type.
    """
    description = read_config(directory, argument)
    found = description.get("model_type")
    if found in _WHOLES and "vision_config" in description:
        # Published files leave out here what the whole model says.
        description = description["vision_config"] | {"model_type": _WHOLES[found]}
    for config_class in config_classes:
        if description.get("model_type") == config_class.model_type:
            return config_class.from_dict(description)
    raise ValueError(
        f"{argument}: {directory} holds a model of type {found!r}; "
        f"{' or '.join(one.model_type for one in config_classes)} is expected."
    )
