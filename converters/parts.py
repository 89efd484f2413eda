"""Rows of parts that several families have: language models, and the layers of vision towers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from transformers import PretrainedConfig

from converters.rows import FuseGateUp, PadRows, Rename, Row, qkv_row
from models.image_slots.carried import carried_name, carried_shapes
from models.image_slots.layer_names import LAYER
from models.padding import padded_size


def vocabulary_rows(
    text: PretrainedConfig, embedding: str, output: str, megatron: str = "language_model."
) -> list[Row]:
    """Rows of the embedding, and of the output layer where it is another tensor.

    Args:
        text: sizes.
        embedding: its name on the Hugging Face side.
        output: name of the output layer there.
        megatron: prefix.
    """
    size = {"rows": text.vocab_size, "padded_rows": padded_size(text.vocab_size)}
    name = f"{megatron}embedding.word_embeddings.weight"
    rows: list[Row] = [PadRows(hf=embedding, megatron=name, **size)]
    if not text.tie_word_embeddings:
        rows.append(PadRows(hf=output, megatron=f"{megatron}output_layer.weight", **size))
    return rows


def carried_rows(names: Iterable[str], hf: str, megatron: str) -> list[Row]:
    """Rows of the tensors of a vision tower that do not take part, below the given prefixes."""
    return [
        Rename(hf=f"{hf}{name}", megatron=f"{megatron}carried.{carried_name(name)}")
        for name in names
    ]


def language_table(
    text: PretrainedConfig, hf: str, qkv_bias: bool, megatron: str = "language_model."
) -> list[Row]:
    """Rows of a Llama, Qwen2 or the like.

    Args:
        text: sizes.
        hf: prefix of `model.` and `lm_head.`
        qkv_bias: whether query, key and value have one.
        megatron: prefix.
    """
    rows = vocabulary_rows(text, f"{hf}model.embed_tokens.weight", f"{hf}lm_head.weight", megatron)
    rows.append(
        Rename(hf=f"{hf}model.norm.weight", megatron=f"{megatron}decoder.final_layernorm.weight")
    )
    for layer in range(text.num_hidden_layers):
        rows += _language_layer(
            text, qkv_bias, f"{hf}model.layers.{layer}.", f"{megatron}decoder.layers.{layer}."
        )
    return rows


def _language_layer(text: PretrainedConfig, qkv_bias: bool, hf: str, megatron: str) -> list[Row]:
    attention, mlp = f"{megatron}self_attention.", f"{megatron}mlp."
    return [
        Rename(
            hf=f"{hf}input_layernorm.weight", megatron=f"{attention}linear_qkv.layer_norm_weight"
        ),
        *(
            qkv_row(
                f"{hf}self_attn.",
                attention,
                kind,
                text.num_attention_heads,
                text.num_key_value_heads,
                getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            )
            for kind in ("weight", "bias")[: 1 + qkv_bias]
        ),
        Rename(hf=f"{hf}self_attn.o_proj.weight", megatron=f"{attention}linear_proj.weight"),
        Rename(
            hf=f"{hf}post_attention_layernorm.weight",
            megatron=f"{mlp}linear_fc1.layer_norm_weight",
        ),
        FuseGateUp(
            gate=f"{hf}mlp.gate_proj.weight",
            up=f"{hf}mlp.up_proj.weight",
            megatron=f"{mlp}linear_fc1.weight",
        ),
        Rename(hf=f"{hf}mlp.down_proj.weight", megatron=f"{mlp}linear_fc2.weight"),
    ]


def vision_layers(
    vision: PretrainedConfig, num_carried_layers: int, hf: str, megatron: str, head: bool = False
) -> list[Row]:
    """Rows of the layers of a SigLIP or CLIP, and of what is carried, below the given prefixes."""
    rows: list[Row] = []
    running = vision.num_hidden_layers - num_carried_layers
    for layer in range(running):
        rows += _vision_layer(
            vision, f"{hf}encoder.layers.{layer}.", f"{megatron}decoder.layers.{layer}."
        )
    carried = carried_shapes(
        range(running, vision.num_hidden_layers),
        vision.hidden_size,
        vision.intermediate_size,
        head,
    )
    return rows + carried_rows(carried, hf, megatron)


def _vision_layer(vision: PretrainedConfig, hf: str, megatron: str) -> list[Row]:
    heads = vision.num_attention_heads
    sizes = (heads, heads, vision.hidden_size // heads)
    fused = [
        qkv_row(f"{hf}self_attn.", f"{megatron}self_attention.", kind, *sizes)
        for kind in ("weight", "bias")
    ]
    return [*fused, *renames(LAYER, hf, megatron)]


def renames(names: Mapping[str, str], hf: str, megatron: str) -> list[Row]:
    """Rows of tensors that only have another name, below the given prefixes."""
    return [
        Rename(hf=f"{hf}{name}", megatron=f"{megatron}{other}") for name, other in names.items()
    ]
