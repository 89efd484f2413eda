"""What a finished NeMo checkpoint is of; its weights are not read."""

from __future__ import annotations

from pathlib import Path

from converters.families import family_of
from converters.family import Family
from models.checkpoint_paths import find_assets


def open_checkpoint(checkpoint: str | Path) -> tuple[Family, Path]:
    """Return the family of a checkpoint and its assets folder.

    Raises:
        ValueError: the folder is no finished checkpoint of a known family.
    """
    weights_of(checkpoint)
    assets = find_assets(checkpoint)
    return family_of(assets, "ckpt"), assets


def weights_of(checkpoint: str | Path) -> Path:
    """Return the folder with the weights.

    Raises:
        ValueError: the folder is no finished checkpoint.
    """
    weights = Path(checkpoint) / "weights"
    if not (weights / "metadata.json").is_file():
        raise ValueError(
            f"ckpt: {checkpoint} is not a finished NeMo checkpoint (weights/metadata.json is "
            "missing); give the folder that holds weights and context."
        )
    return weights
