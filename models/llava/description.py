"""What config.json says of a LLaVA, read without NeMo."""

from __future__ import annotations

from pathlib import Path

from transformers import LlavaConfig

from models.assets_config import read_config

QKV_BIAS = {"llama": False, "mistral": False, "qwen2": True}
"""The language models, and whether their query, key and value have a bias."""


def read_assets_config(assets: str | Path) -> LlavaConfig:
    """Read config.json of an assets folder.

    Raises:
        ValueError: it is missing, or belongs to another model family.
    """
    return read_config(assets, LlavaConfig)
