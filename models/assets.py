"""The assets of a checkpoint: what a Hugging Face directory holds besides weights and code."""

import shutil
from pathlib import Path

from nemo.lightning.io.artifact import Artifact

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
