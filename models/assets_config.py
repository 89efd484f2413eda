"""config.json and preprocessor_config.json of a checkpoint's assets, read without NeMo."""

import json
from pathlib import Path
from typing import Any, TypeVar

from transformers import PretrainedConfig

ConfigClass = TypeVar("ConfigClass", bound=PretrainedConfig)


def read_model_type(assets: str | Path) -> str | None:
    """Read the model type of an assets folder.

    Raises:
        ValueError: config.json is missing.
    """
    return _read(assets)[1].get("model_type")


def read_config(assets: str | Path, config_class: type[ConfigClass]) -> ConfigClass:
    """Read config.json of an assets folder as a configuration of one model type.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    path, description = _read(assets)
    if description.get("model_type") != config_class.model_type:
        raise ValueError(
            f"assets: {path} describes a model of type {description.get('model_type')!r}; "
            f"{config_class.model_type} is expected."
        )
    return config_class.from_dict(description)


def _read(assets: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(assets) / "config.json"
    if not path.is_file():
        raise ValueError(f"assets: {path} does not exist; give a checkpoint made by this project.")
    return path, json.loads(path.read_text(encoding="utf-8"))


def read_pixel_statistics(assets: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read the mean and the standard deviation of pixels (of [0, 1]) by channel.

    Raises:
        ValueError: preprocessor_config.json is missing or asks for other arithmetic.
    """
    path = Path(assets) / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError(f"assets: {path} does not exist; give a checkpoint made by this project.")
    described = json.loads(path.read_text(encoding="utf-8"))
    factor = described.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"assets: rescale_factor {factor} of {path} is not supported; 1/255 is.")
    return tuple(described["image_mean"]), tuple(described["image_std"])
