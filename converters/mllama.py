"""The table between MLlama's Hugging Face tensors and Megatron-Core's."""

from __future__ import annotations

from transformers import MllamaConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from converters.name_styles import NameStyles
from converters.rows import FuseGateUp, FuseKeyValue, PadRows, Rename, Row, qkv_row
from models.mllama.description import EXTRA_EMBEDDINGS
from models.padding import padded_size

STYLES = NameStyles(
    {
        "model.language_model.": "language_model.model.",
        "model.vision_model.": "vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    }
)
_LANGUAGE, _VISION = "language_model.model.", "vision_model."


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
