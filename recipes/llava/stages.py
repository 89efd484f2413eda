"""The two stages of LLaVA-1.5, one of preferences after them, and their nano counterparts.

Published: the scripts of LLaVA-1.5 (README.md has the table, value by value). The second stage may
be LoRA instead of a full fine-tuning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from recipes.llava.sizes import is_nano
from recipes.rows import StageRow, look_up_stage

Stage = Literal["pretrain", "sft", "preference"]
PeftScheme = Literal["none", "lora", "dora"]

# Published: AdamW of transformers (betas 0.9, 0.999), no weight decay, warm-up 3 %, cosine to 0,
# gradients clipped at DeepSpeed's default of 1.
_PRETRAIN = StageRow(
    train_vision=False,
    train_projector=True,
    train_language=False,
    num_samples=558_128,
    global_batch_size=256,
    seq_length=2048,
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
    num_samples=665_298,
    global_batch_size=128,
    max_lr=2e-5,
    conversation_template=None,
    starts_from="pretrain",
)
# LLaVA-1.5 had none: ours, with what is usual for DPO.
_PREFERENCE = replace(
    _SFT,
    num_samples=83_000,
    max_lr=5e-7,
    warmup_fraction=0.1,
    preference_beta=0.1,
    save_every_steps=100,
    starts_from="sft",
)
STAGES: dict[tuple[str, str], StageRow] = {
    ("pretrain", "none"): _PRETRAIN,
    ("sft", "none"): _SFT,
    ("preference", "none"): _PREFERENCE,
    # The adapters learn ten times as fast as the projector beside them.
    ("sft", "lora"): replace(_SFT, max_lr=2e-4, projector_max_lr=2e-5),
    ("preference", "lora"): replace(_PREFERENCE, max_lr=5e-6, projector_max_lr=5e-7),
}

# Handwritten digits on a CPU.
_NANO_PRETRAIN = replace(
    _PRETRAIN,
    # Aligning random weights teaches nothing, so both stages train everything, alike.
    conversation_template=None,
    train_vision=True,
    train_language=True,
    num_samples=350 * 32,
    global_batch_size=32,
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
_NANO_PREFERENCE = replace(
    _NANO_SFT,
    train_vision=False,
    num_samples=50 * 32,
    max_lr=1e-4,
    warmup_fraction=0.1,
    preference_beta=0.1,
    save_every_steps=25,
    starts_from="sft",
)
NANO_STAGES: dict[tuple[str, str], StageRow] = {
    ("pretrain", "none"): _NANO_PRETRAIN,
    ("sft", "none"): _NANO_SFT,
    ("preference", "none"): _NANO_PREFERENCE,
    ("sft", "lora"): replace(_NANO_SFT, projector_max_lr=1e-3),
    ("preference", "lora"): _NANO_PREFERENCE,
}

for _table in (STAGES, NANO_STAGES):
    for _stage in ("sft", "preference"):
        _table[_stage, "dora"] = _table[_stage, "lora"]

LORA_OPTIONS = {"dim": 128, "alpha": 256, "dropout": 0.05}
"""Rank, scale and dropout of the published LoRA fine-tuning."""


def stage_row(stage: str, peft_scheme: str | None, size: str) -> StageRow:
    """Return the row of a stage and a scheme; None is "none".

    Raises:
        ValueError: an unknown stage or scheme, or LoRA in the first stage.
    """
    return look_up_stage(NANO_STAGES if is_nano(size) else STAGES, stage, peft_scheme)


assert {stage for stage, _ in STAGES} == set(get_args(Stage))
assert {scheme for _, scheme in STAGES} == set(get_args(PeftScheme))
assert STAGES.keys() == NANO_STAGES.keys()
