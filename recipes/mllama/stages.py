"""What an MLlama fine-tuning trains, and how: in full, or with LoRA.

The full row of the real sizes is that of the published tutorial for llava-instruct-ja (README.md
has the table, value by value).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from recipes.rows import StageRow, look_up

PeftScheme = Literal["none", "lora", "dora"]

_FULL = StageRow(
    train_vision=True,
    train_projector=True,
    train_language=True,
    num_samples=1160 * 128,
    global_batch_size=128,
    seq_length=2048,
    max_lr=2e-5,
    min_lr=2e-7,
    warmup_fraction=100 / 1160,
    # NeMo's defaults for a cosine schedule, which the tutorial takes.
    weight_decay=0.1,
    adam_beta2=0.95,
    adam_eps=1e-5,
    clip_grad=1.0,
    max_tiles=4,
    # Four images of four tiles: images take no positions of the text, so nothing else bounds them.
    max_tiles_per_row=16,
    save_every_steps=580,
    keep_checkpoints=1,
    starts_from="imported",
)
STAGES: dict[str, StageRow] = {
    "none": _FULL,
    # The learning rate of NeMo's own LoRA recipe.
    "lora": replace(_FULL, max_lr=1e-4),
}

# Handwritten digits on a CPU.
_NANO = replace(
    _FULL,
    num_samples=450 * 32,
    global_batch_size=32,
    seq_length=256,
    max_lr=1e-3,
    min_lr=5e-5,
    warmup_fraction=0.05,
    weight_decay=0.05,
    save_every_steps=100,
)
NANO_STAGES: dict[str, StageRow] = {"none": _NANO, "lora": _NANO}
for _table in (STAGES, NANO_STAGES):
    _table["dora"] = _table["lora"]


LORA_OPTIONS = {"dim": 8, "alpha": 32, "dropout": 0.05}
"""Rank, scale and dropout of NeMo's own LoRA recipe."""


def stage_row(peft_scheme: str | None, size: str) -> StageRow:
    """Return the row of a scheme; None is "none".

    Raises:
        ValueError: unknown scheme.
    """
    table = NANO_STAGES if size == "nano" else STAGES
    return look_up(table, "peft_scheme", peft_scheme or "none")


assert set(get_args(PeftScheme)) == STAGES.keys() == NANO_STAGES.keys()
