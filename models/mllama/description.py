"""What config.json says of an MLlama, read without NeMo."""

from __future__ import annotations

from pathlib import Path

from transformers import MllamaConfig as HFMllamaConfig

from models.assets_config import read_config

EXTRA_EMBEDDINGS = 8
"""Rows of the embedding beyond the vocabulary: the image token is the first of them."""


def read_assets_config(assets: str | Path) -> HFMllamaConfig:
    """Read config.json of an assets folder.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    return read_config(assets, HFMllamaConfig)
