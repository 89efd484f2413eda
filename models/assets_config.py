"""config.json of a checkpoint's assets, read without NeMo."""

import json
from pathlib import Path
from typing import TypeVar

from transformers import PretrainedConfig

ConfigClass = TypeVar("ConfigClass", bound=PretrainedConfig)


def read_config(assets: str | Path, config_class: type[ConfigClass]) -> ConfigClass:
    """Read config.json of an assets folder as a configuration of one model type.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    path = Path(assets) / "config.json"
    if not path.is_file():
        raise ValueError(f"assets: {path} does not exist; give a checkpoint made by this project.")
    description = json.loads(path.read_text(encoding="utf-8"))
    if description.get("model_type") != config_class.model_type:
        raise ValueError(
            f"assets: {path} describes a model of type {description.get('model_type')!r}; "
            f"{config_class.model_type} is expected."
        )
    return config_class.from_dict(description)
