"""What config.json says of an NVILA, read without NeMo."""

from __future__ import annotations

from pathlib import Path

from models.assets_config import read_config
from models.hf_code.configuration_nvila_lite import NVILALiteConfig


def read_assets_config(assets: str | Path) -> NVILALiteConfig:
    """Read config.json of an assets folder.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    return read_config(assets, NVILALiteConfig)
