"""The two stages of LLaVA-JP: LLaVA's, but for the batch, the length and the data.

Published: the scripts of LLaVA-JP (README.md has the table, value by value). The second stage may
be LoRA instead of a full fine-tuning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recipes.llava.stages import NANO_STAGES, Stage
from recipes.llava.stages import STAGES as LLAVA_STAGES
from recipes.rows import StageRow, look_up_stage

__all__ = ["LORA_OPTIONS", "NANO_STAGES", "STAGES", "Stage", "stage_row"]

_SEQ_LENGTH = 1536
"""Published: 1532; a multiple of what the matrix units take."""

_DATA: dict[str, dict[str, Any]] = {
    "pretrain": {"global_batch_size": 32},
    "sft": {"global_batch_size": 16, "num_samples": 620_000},
    "preference": {"global_batch_size": 16},
}

STAGES: dict[tuple[str, str], StageRow] = {
    (stage, scheme): replace(row, seq_length=_SEQ_LENGTH, **_DATA[stage])
    for (stage, scheme), row in LLAVA_STAGES.items()
}

LORA_OPTIONS = {
    "dim": 128,
    "alpha": 256,
    "dropout": 0.05,
    "target_modules": ["*.language_model.*.linear_qkv"],
}
"""Rank, scale and dropout as published, on GPT-2's fused query, key and value (`c_attn`)."""


def stage_row(stage: str, peft_scheme: str | None, size: str) -> StageRow:
    """Return the row of a stage and a scheme; None is "none".

    Raises:
        ValueError: an unknown stage or scheme, or LoRA in the first stage.
    """
    return look_up_stage(NANO_STAGES if size == "nano" else STAGES, stage, peft_scheme)
