"""The table between MLlama's Hugging Face tensors and Megatron-Core's.

Two styles of Hugging Face names are in use. On disk a tensor is `language_model.model.layers.0...`,
`language_model.lm_head.weight`, `vision_model...`, `multi_modal_projector...`: so in the published
Llama 3.2 Vision models, in what servers load, and in what transformers 4.53 writes, whose
`save_pretrained` turns its names back into these. In memory the same transformers says
`model.language_model.layers.0...`, `lm_head.weight`, `model.vision_model...`: so in files that were
written from a `state_dict`. The table has the first style, which is what export writes; import
reads either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from transformers import MllamaConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from converters.rows import ConversionError, FuseGateUp, FuseKeyValue, PadRows, Rename, Row, qkv_row
from models.mllama.description import EXTRA_EMBEDDINGS
from models.padding import padded_size

TensorType = TypeVar("TensorType")

_IN_MEMORY_TO_DISK = {
    "model.language_model.": "language_model.model.",
    "model.vision_model.": "vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
_LANGUAGE, _VISION = "language_model.model.", "vision_model."


def disk_names(tensors: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """Return tensors of either style under the names on disk.

    Raises:
        ConversionError: names of both styles.
    """
    renamed = {name: _disk_name(name) for name in tensors}
    in_memory = sorted(name for name, disk in renamed.items() if name != disk)
    on_disk = sorted(
        name for name in renamed if name.startswith(tuple(_IN_MEMORY_TO_DISK.values()))
    )
    if in_memory and on_disk:
        raise ConversionError(
            f"The Hugging Face tensors mix two styles of names: {', '.join(in_memory)} beside "
            f"{', '.join(on_disk)}."
        )
    return {renamed[name]: tensor for name, tensor in tensors.items()}


def _disk_name(name: str) -> str:
    for in_memory, on_disk in _IN_MEMORY_TO_DISK.items():
        if name.startswith(in_memory):
            return on_disk + name.removeprefix(in_memory)
    return name


def module_name(name: str) -> str:
    """Return the place in transformers' module tree of a tensor with a name on disk."""
    for in_memory, on_disk in _IN_MEMORY_TO_DISK.items():
        if name.startswith(on_disk):
            return in_memory + name.removeprefix(on_disk)
    raise AssertionError(name)


def mllama_table(description: MllamaConfig) -> list[Row]:
    """Rows for a whole model.

    Args:
        description: sizes.
    """
    return [
        *_language_table(description.text_config),
        *_vision_table(description.vision_config),
        *(
            Rename(hf=f"multi_modal_projector.{kind}", megatron=f"vision_projection.{kind}")
            for kind in ("weight", "bias")
        ),
    ]


def _language_table(text: MllamaTextConfig) -> list[Row]:
    padded = padded_size(text.vocab_size + EXTRA_EMBEDDINGS)
    rows: list[Row] = [
        # The embedding has rows for the image token and seven more; nothing predicts them.
        PadRows(
            hf=f"{_LANGUAGE}embed_tokens.weight",
            megatron="language_model.embedding.word_embeddings.weight",
            rows=text.vocab_size + EXTRA_EMBEDDINGS,
            padded_rows=padded,
        ),
        PadRows(
            hf="language_model.lm_head.weight",
            megatron="language_model.output_layer.weight",
            rows=text.vocab_size,
            padded_rows=padded,
        ),
        Rename(
            hf=f"{_LANGUAGE}norm.weight", megatron="language_model.decoder.final_layernorm.weight"
        ),
    ]
    for layer in range(text.num_hidden_layers):
        hf, megatron = f"{_LANGUAGE}layers.{layer}.", f"language_model.decoder.layers.{layer}."
        if layer in text.cross_attention_layers:
            rows += _cross_attention(text, hf, megatron)
        else:
            rows += _self_attention(text, hf, megatron)
        rows += _gated_mlp(hf, f"{megatron}mlp.")
    return rows


def _self_attention(text: MllamaTextConfig, hf: str, megatron: str) -> list[Row]:
    attention = f"{megatron}self_attention."
    return [
        Rename(
            hf=f"{hf}input_layernorm.weight", megatron=f"{attention}linear_qkv.layer_norm_weight"
        ),
        qkv_row(
            f"{hf}self_attn.",
            attention,
            "weight",
            text.num_attention_heads,
            text.num_key_value_heads,
            text.hidden_size // text.num_attention_heads,
        ),
        Rename(hf=f"{hf}self_attn.o_proj.weight", megatron=f"{attention}linear_proj.weight"),
    ]


def _cross_attention(text: MllamaTextConfig, hf: str, megatron: str) -> list[Row]:
    theirs, ours = f"{hf}cross_attn.", f"{megatron}cross_attention."
    return [
        Rename(hf=f"{hf}input_layernorm.weight", megatron=f"{ours}linear_q.layer_norm_weight"),
        Rename(hf=f"{theirs}q_proj.weight", megatron=f"{ours}linear_q.weight"),
        FuseKeyValue(
            key=f"{theirs}k_proj.weight",
            value=f"{theirs}v_proj.weight",
            megatron=f"{ours}linear_kv.weight",
            num_groups=text.num_key_value_heads,
            head_size=text.hidden_size // text.num_attention_heads,
        ),
        Rename(hf=f"{theirs}o_proj.weight", megatron=f"{ours}linear_proj.weight"),
        Rename(hf=f"{theirs}q_norm.weight", megatron=f"{ours}q_layernorm.weight"),
        Rename(hf=f"{theirs}k_norm.weight", megatron=f"{ours}k_layernorm.weight"),
        Rename(hf=f"{hf}cross_attn_attn_gate", megatron=f"{megatron}gate_attn"),
        Rename(hf=f"{hf}cross_attn_mlp_gate", megatron=f"{megatron}gate_ffn"),
    ]


def _gated_mlp(hf: str, megatron: str) -> list[Row]:
    return [
        Rename(
            hf=f"{hf}post_attention_layernorm.weight",
            megatron=f"{megatron}linear_fc1.layer_norm_weight",
        ),
        FuseGateUp(
            gate=f"{hf}mlp.gate_proj.weight",
            up=f"{hf}mlp.up_proj.weight",
            megatron=f"{megatron}linear_fc1.weight",
        ),
        Rename(hf=f"{hf}mlp.down_proj.weight", megatron=f"{megatron}linear_fc2.weight"),
    ]


_VISION_NAMES = {
    "patch_embedding.weight": "patch_embedding.weight",
    "class_embedding": "class_embedding",
    "gated_positional_embedding.embedding": "position_embedding",
    "gated_positional_embedding.gate": "position_gate",
    "gated_positional_embedding.tile_embedding.weight": "tile_position_embedding.weight",
    "pre_tile_positional_embedding.embedding.weight": "pre_tile_embedding.weight",
    "pre_tile_positional_embedding.gate": "pre_tile_gate",
    "post_tile_positional_embedding.embedding.weight": "post_tile_embedding.weight",
    "post_tile_positional_embedding.gate": "post_tile_gate",
    "layernorm_pre.weight": "layernorm_pre.weight",
    "layernorm_pre.bias": "layernorm_pre.bias",
    "layernorm_post.weight": "layernorm_post.weight",
    "layernorm_post.bias": "layernorm_post.bias",
}
"""Everything of the vision encoder outside of its layers."""


def _vision_table(vision: MllamaVisionConfig) -> list[Row]:
    rows: list[Row] = [
        Rename(hf=f"{_VISION}{hf}", megatron=f"{_VISION}{megatron}")
        for hf, megatron in _VISION_NAMES.items()
    ]
    for theirs, ours, layers in (
        ("transformer", "local_encoder", vision.num_hidden_layers),
        ("global_transformer", "global_encoder", vision.num_global_layers),
    ):
        for layer in range(layers):
            hf = f"{_VISION}{theirs}.layers.{layer}."
            megatron = f"{_VISION}{ours}.layers.{layer}."
            rows += _vision_layer(vision, hf, megatron)
            if theirs == "global_transformer":
                rows += [
                    Rename(hf=f"{hf}{gate}", megatron=f"{megatron}{gate}")
                    for gate in ("gate_attn", "gate_ffn")
                ]
    return rows


def _vision_layer(vision: MllamaVisionConfig, hf: str, megatron: str) -> list[Row]:
    attention, mlp = f"{megatron}self_attention.", f"{megatron}mlp."
    heads = vision.attention_heads
    rows: list[Row] = [
        qkv_row(f"{hf}self_attn.", attention, "weight", heads, heads, vision.hidden_size // heads),
        Rename(hf=f"{hf}self_attn.o_proj.weight", megatron=f"{attention}linear_proj.weight"),
    ]
    for kind in ("weight", "bias"):
        rows += [
            Rename(
                hf=f"{hf}input_layernorm.{kind}",
                megatron=f"{attention}linear_qkv.layer_norm_{kind}",
            ),
            Rename(
                hf=f"{hf}post_attention_layernorm.{kind}",
                megatron=f"{mlp}linear_fc1.layer_norm_{kind}",
            ),
            Rename(hf=f"{hf}mlp.fc1.{kind}", megatron=f"{mlp}linear_fc1.{kind}"),
            Rename(hf=f"{hf}mlp.fc2.{kind}", megatron=f"{mlp}linear_fc2.{kind}"),
        ]
    return rows
