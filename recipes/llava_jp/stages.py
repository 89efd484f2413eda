"""The two stages of LLaVA-JP and their nano counterparts.

Published: the scripts of LLaVA-JP (README.md has the table, value by value). The second stage may
be LoRA instead of a full fine-tuning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from recipes.rows import StageRow, look_up_stage

Stage = Literal["pretrain", "sft"]
PeftScheme = Literal["none", "lora", "dora"]

_PRETRAIN = StageRow(
    train_vision=False,
    train_projector=True,
    train_language=False,
    num_samples=558_128,
    global_batch_size=32,
    seq_length=1536,  # published: 1532; a multiple of what the matrix units take
    max_lr=1e-3,
    min_lr=0.0,
    warmup_fraction=0.03,
    weight_decay=0.0,
    adam_beta2=0.999,
    clip_grad=1.0,
    max_tiles=1,
    conversation_template="plain",
    save_every_steps=500,
    keep_checkpoints=1,
    starts_from="assembled",
)
_SFT = replace(
    _PRETRAIN,
    train_language=True,
    num_samples=620_000,
    global_batch_size=16,
    max_lr=2e-5,
    conversation_template=None,
    starts_from="pretrain",
)
STAGES: dict[tuple[str, str], StageRow] = {
    ("pretrain", "none"): _PRETRAIN,
    ("sft", "none"): _SFT,
    ("sft", "lora"): replace(_SFT, max_lr=2e-4, projector_max_lr=2e-5),
}

# Handwritten digits on a CPU.
_NANO_PRETRAIN = replace(
    _PRETRAIN,
    # Aligning random weights teaches nothing, so both stages train everything, alike.
    conversation_template=None,
    train_vision=True,
    train_language=True,
    num_samples=350 * 32,
    seq_length=512,
    min_lr=5e-5,
    warmup_fraction=0.06,
    weight_decay=0.05,
    adam_beta2=0.95,
    save_every_steps=100,
)
_NANO_SFT = replace(
    _NANO_PRETRAIN,
    num_samples=1000 * 32,
    warmup_fraction=0.04,
    starts_from="pretrain",
)
NANO_STAGES: dict[tuple[str, str], StageRow] = {
    ("pretrain", "none"): _NANO_PRETRAIN,
    ("sft", "none"): _NANO_SFT,
    ("sft", "lora"): replace(_NANO_SFT, projector_max_lr=1e-3),
}

for _table in (STAGES, NANO_STAGES):
    _table["sft", "dora"] = _table["sft", "lora"]

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


assert {stage for stage, _ in STAGES} == set(get_args(Stage))
assert {scheme for _, scheme in STAGES} == set(get_args(PeftScheme))
assert STAGES.keys() == NANO_STAGES.keys()
