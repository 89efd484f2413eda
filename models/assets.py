"""The assets of a checkpoint: what a Hugging Face directory holds besides weights and code."""

import json
import shutil
from pathlib import Path
from typing import TypeVar

from nemo.lightning.io.artifact import Artifact
from transformers import PretrainedConfig

ConfigClass = TypeVar("ConfigClass", bound=PretrainedConfig)

ASSETS_FOLDER = "assets"


class AssetsArtifact(Artifact[str]):
    """Copies the assets folder into every checkpoint's `context/assets`.

    NeMo's own DirArtifact keeps the source folder's name and fails when the target exists; export
    needs one fixed place, and a checkpoint may be written twice.
    """

    def dump(self, instance, value: str, absolute_dir: Path, relative_dir: Path) -> str:
        """Copy `value` to `absolute_dir / relative_dir / assets` and return the relative path."""
        relative = Path(relative_dir) / ASSETS_FOLDER
        target = Path(absolute_dir) / relative
        if Path(value).resolve() != target.resolve():
            shutil.copytree(value, target, dirs_exist_ok=True)
        return str(relative)

    def load(self, path: str) -> str:
        """Return the path as it is."""
        return path


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
