"""The three stages of Heron-NVILA-Lite, preferences after them, and their nano counterparts.

Published: the scripts of Heron-NVILA-Lite-15B (README.md has the table, value by value). The other
sizes were trained with the same stages and data; their hyper-parameters are not published, so they
use the same rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from recipes.rows import StageRow, look_up

Stage = Literal["align", "pretrain", "sft", "preference"]

# Published: AdamW of transformers (betas 0.9, 0.999), no weight decay, warm-up 3 %, cosine to 0.
_ALIGN = StageRow(
    train_vision=False,
    train_projector=True,
    train_language=False,
    num_samples=595_000 + 558_000,
    global_batch_size=2048,
    seq_length=4096,
    max_lr=1e-3,
    min_lr=0.0,
    warmup_fraction=0.03,
    weight_decay=0.0,
    adam_beta2=0.999,
    # Ours: the published runs had no clipping and met loss spikes.
    clip_grad=1.0,
    max_tiles=12,
    save_every_steps=500,
    keep_checkpoints=1,
    starts_from="assembled",
)
STAGES: dict[str, StageRow] = {
    "align": _ALIGN,
    "pretrain": replace(
        _ALIGN,
        train_language=True,
        num_samples=33_000_000,
        global_batch_size=1152,
        max_lr=5e-5,
        keep_checkpoints=10,
        starts_from="align",
    ),
    "sft": replace(
        _ALIGN,
        train_vision=True,
        train_language=True,
        num_samples=1_080_000,
        global_batch_size=2304,
        max_lr=2e-5,
        save_every_steps=100,
        starts_from="pretrain",
    ),
    # Heron-NVILA had none: ours, with what is usual for DPO.
    "preference": replace(
        _ALIGN,
        train_language=True,
        num_samples=83_000,
        global_batch_size=128,
        max_lr=5e-7,
        warmup_fraction=0.1,
        preference_beta=0.1,
        save_every_steps=100,
        starts_from="sft",
    ),
}

# Handwritten digits on a CPU: singles first, then strips; every stage trains for minutes at most.
_NANO_ALIGN = StageRow(
    train_vision=False,
    train_projector=True,
    train_language=False,
    num_samples=30 * 32,
    global_batch_size=32,
    seq_length=256,
    max_lr=1e-3,
    min_lr=5e-5,
    warmup_fraction=0.1,
    weight_decay=0.05,
    adam_beta2=0.95,
    clip_grad=1.0,
    max_tiles=4,
    save_every_steps=100,
    keep_checkpoints=1,
    starts_from="assembled",
)
NANO_STAGES: dict[str, StageRow] = {
    "align": _NANO_ALIGN,
    # Aligning random weights teaches nothing, so stage 2 trains the vision tower too.
    "pretrain": replace(
        _NANO_ALIGN,
        train_vision=True,
        train_language=True,
        num_samples=350 * 32,
        warmup_fraction=0.06,
        starts_from="align",
    ),
    "sft": replace(
        _NANO_ALIGN,
        train_vision=True,
        train_language=True,
        num_samples=500 * 32,
        warmup_fraction=0.04,
        starts_from="pretrain",
    ),
    "preference": replace(
        _NANO_ALIGN,
        train_language=True,
        num_samples=50 * 32,
        max_lr=1e-4,
        preference_beta=0.1,
        save_every_steps=25,
        starts_from="sft",
    ),
}


LORA_OPTIONS = {"dim": 8, "alpha": 32, "dropout": 0.05}
"""Rank, scale and dropout of NeMo's own LoRA recipes; Heron-NVILA had none."""

_LORA_MAX_LR = {"pretrain": 1e-4, "sft": 1e-4, "preference": 5e-6}
"""Of the adapters; the parts that train in full keep the stage's learning rate."""


def stage_row(stage: str, size: str, peft_scheme: str | None = None) -> StageRow:
    """Return the row of a stage and a scheme; None is "none".

    Raises:
        ValueError: an unknown stage or scheme, or adapters where the language model does not train.
    """
    row = look_up(NANO_STAGES if size == "nano" else STAGES, "stage", stage)
    schemes = {"none": row}
    if row.train_language:
        adapted = row if size == "nano" else _with_adapters(row, _LORA_MAX_LR[stage])
        schemes |= dict.fromkeys(("lora", "dora"), adapted)
    return look_up(schemes, "peft_scheme", peft_scheme or "none")


def _with_adapters(row: StageRow, max_lr: float) -> StageRow:
    return replace(
        row,
        max_lr=max_lr,
        projector_max_lr=row.max_lr,
        vision_max_lr=row.max_lr if row.train_vision else None,
    )


assert set(get_args(Stage)) == STAGES.keys() == NANO_STAGES.keys()
