"""Rows of a GPT-2, seen as linear layers (converters/conv1d.py)."""

from __future__ import annotations

from transformers import PretrainedConfig

from converters.parts import vocabulary_rows
from converters.rows import Dropped, Rename, Row, qkv_row


def gpt2_table(
    text: PretrainedConfig, hf: str, output: str, megatron: str = "language_model."
) -> list[Row]:
    """Rows of a whole GPT-2.

    Args:
        text: sizes.
        hf: prefix of `wte.`, `h.` and so on.
        output: name of the output layer's weight, which a tied model does not have.
        megatron: prefix.
    """
    rows = vocabulary_rows(text, f"{hf}wte.weight", output, megatron)
    rows.append(
        Rename(hf=f"{hf}wpe.weight", megatron=f"{megatron}embedding.position_embeddings.weight")
    )
    rows += [
        Rename(hf=f"{hf}ln_f.{kind}", megatron=f"{megatron}decoder.final_layernorm.{kind}")
        for kind in ("weight", "bias")
    ]
    for layer in range(text.n_layer):
        rows += _layer(text, f"{hf}h.{layer}.", f"{megatron}decoder.layers.{layer}.")
    return rows


def _layer(text: PretrainedConfig, hf: str, megatron: str) -> list[Row]:
    attention, mlp, heads = f"{megatron}self_attention.", f"{megatron}mlp.", text.n_head
    rows: list[Row] = []
    for kind in ("weight", "bias"):
        rows += [
            Rename(hf=f"{hf}ln_1.{kind}", megatron=f"{attention}linear_qkv.layer_norm_{kind}"),
            qkv_row(f"{hf}attn.", attention, kind, heads, heads, text.n_embd // heads),
            Rename(hf=f"{hf}attn.c_proj.{kind}", megatron=f"{attention}linear_proj.{kind}"),
            Rename(hf=f"{hf}ln_2.{kind}", megatron=f"{mlp}linear_fc1.layer_norm_{kind}"),
            Rename(hf=f"{hf}mlp.c_fc.{kind}", megatron=f"{mlp}linear_fc1.{kind}"),
            Rename(hf=f"{hf}mlp.c_proj.{kind}", megatron=f"{mlp}linear_fc2.{kind}"),
        ]
    return rows


def gpt2_drops(text: PretrainedConfig, hf: str) -> list[Dropped]:
    """Rows of the causal masks that older files hold.

    Args:
        text: sizes.
        hf: as for `gpt2_table`.
    """
    return [
        Dropped(hf=f"{hf}h.{layer}.attn.{name}")
        for layer in range(text.n_layer)
        for name in ("bias", "masked_bias")
    ]
