"""Rows of a Nemotron; its norms hold their weight minus one on both sides."""

from __future__ import annotations

from transformers import PretrainedConfig

from converters.parts import vocabulary_rows
from converters.rows import Rename, Row, qkv_row


def nemotron_table(text: PretrainedConfig, hf: str, megatron: str = "language_model.") -> list[Row]:
    """Rows of a whole Nemotron.

    Args:
        text: sizes.
        hf: prefix of `model.` and `lm_head.`
        megatron: prefix.
    """
    rows = vocabulary_rows(text, f"{hf}model.embed_tokens.weight", f"{hf}lm_head.weight", megatron)
    rows += [
        Rename(hf=f"{hf}model.norm.{kind}", megatron=f"{megatron}decoder.final_layernorm.{kind}")
        for kind in ("weight", "bias")
    ]
    for layer in range(text.num_hidden_layers):
        rows += _layer(text, f"{hf}model.layers.{layer}.", f"{megatron}decoder.layers.{layer}.")
    return rows


def _layer(text: PretrainedConfig, hf: str, megatron: str) -> list[Row]:
    attention, mlp = f"{megatron}self_attention.", f"{megatron}mlp."
    heads = text.num_attention_heads
    groups = text.num_key_value_heads or heads
    norms = (
        ("input_layernorm", f"{attention}linear_qkv"),
        ("post_attention_layernorm", f"{mlp}linear_fc1"),
    )
    return [
        *(
            Rename(hf=f"{hf}{norm}.{kind}", megatron=f"{linear}.layer_norm_{kind}")
            for norm, linear in norms
            for kind in ("weight", "bias")
        ),
        qkv_row(f"{hf}self_attn.", attention, "weight", heads, groups, text.head_dim),
        Rename(hf=f"{hf}self_attn.o_proj.weight", megatron=f"{attention}linear_proj.weight"),
        Rename(hf=f"{hf}mlp.up_proj.weight", megatron=f"{mlp}linear_fc1.weight"),
        Rename(hf=f"{hf}mlp.down_proj.weight", megatron=f"{mlp}linear_fc2.weight"),
    ]
