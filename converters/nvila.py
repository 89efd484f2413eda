"""The table between NVILA's Hugging Face tensors (flat `nvila_lite` names) and Megatron-Core's."""

from __future__ import annotations

import torch
from transformers import Qwen2Config, SiglipVisionConfig

from converters.rows import Dropped, FuseGateUp, PadRows, Rename, Row, qkv_row
from models.nvila.carried import carried_name, carried_shapes
from models.nvila.hf_code.configuration_nvila_lite import DOWNSAMPLE, NVILALiteConfig
from models.nvila.hf_code.modeling_nvila_lite import NVILALiteProjector
from models.padding import padded_size

EMBEDDING, OUTPUT = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
TIED_OUTPUT = [Dropped(hf=OUTPUT, copy_of=EMBEDDING)]
"""Some files hold the tied output layer again."""

WHOLE_SIGLIP = [
    Dropped(hf="vision_tower.vision_model.head."),  # pools the patches to one vector
    Dropped(hf="vision_tower.text_model."),
    Dropped(hf="vision_tower.logit_scale"),
    Dropped(hf="vision_tower.logit_bias"),
]
"""What the published SigLIP models have beyond the tower that NVILA takes."""


def nvila_table(description: NVILALiteConfig) -> list[Row]:
    """Rows for a whole model.

    Args:
        description: sizes.
    """
    text, vision = description.text_config, description.vision_config
    downsample = DOWNSAMPLE[description.mm_projector_type]
    with torch.device("meta"):
        projector = NVILALiteProjector(vision.hidden_size, text.hidden_size, downsample)
    return [
        *language_table(text),
        *vision_table(vision, -description.vision_feature_layer - 1),
        *(
            Rename(hf=f"mm_projector.{name}", megatron=f"vision_projection.{name}")
            for name in projector.state_dict()
        ),
    ]


def nvila_drops(text: Qwen2Config) -> list[Dropped]:
    """Rows of what a directory may hold beyond the model.

    Args:
        text: of the language model.
    """
    return TIED_OUTPUT if text.tie_word_embeddings else []


def language_table(
    text: Qwen2Config, hf: str = "llm.", megatron: str = "language_model."
) -> list[Row]:
    """Rows of a Qwen2 language model below the given prefixes."""
    vocabulary = {"rows": text.vocab_size, "padded_rows": padded_size(text.vocab_size)}
    rows: list[Row] = [
        PadRows(
            hf=f"{hf}model.embed_tokens.weight",
            megatron=f"{megatron}embedding.word_embeddings.weight",
            **vocabulary,
        ),
        Rename(hf=f"{hf}model.norm.weight", megatron=f"{megatron}decoder.final_layernorm.weight"),
    ]
    if not text.tie_word_embeddings:
        rows.append(
            PadRows(
                hf=f"{hf}lm_head.weight", megatron=f"{megatron}output_layer.weight", **vocabulary
            )
        )
    for layer in range(text.num_hidden_layers):
        rows += _language_layer(
            text, f"{hf}model.layers.{layer}.", f"{megatron}decoder.layers.{layer}."
        )
    return rows


def _language_layer(text: Qwen2Config, hf: str, megatron: str) -> list[Row]:
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
            for kind in ("weight", "bias")
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


def vision_table(
    vision: SiglipVisionConfig,
    num_carried_layers: int,
    hf: str = "vision_tower.vision_model.",
    megatron: str = "vision_model.",
) -> list[Row]:
    """Rows of a SigLIP vision tower below the given prefixes."""
    rows: list[Row] = [
        Rename(hf=f"{hf}embeddings.patch_embedding.{kind}", megatron=f"{megatron}conv1.{kind}")
        for kind in ("weight", "bias")
    ]
    rows.append(
        Rename(
            hf=f"{hf}embeddings.position_embedding.weight",
            megatron=f"{megatron}position_embeddings.weight",
        )
    )
    running = vision.num_hidden_layers - num_carried_layers
    for layer in range(running):
        rows += _vision_layer(
            vision, f"{hf}encoder.layers.{layer}.", f"{megatron}decoder.layers.{layer}."
        )
    carried = carried_shapes(
        range(running, vision.num_hidden_layers), vision.hidden_size, vision.intermediate_size
    )
    rows += [
        Rename(hf=f"{hf}{name}", megatron=f"{megatron}carried.{carried_name(name)}")
        for name in carried
    ]
    return rows


def _vision_layer(vision: SiglipVisionConfig, hf: str, megatron: str) -> list[Row]:
    attention, mlp = f"{megatron}self_attention.", f"{megatron}mlp."
    heads = vision.num_attention_heads
    rows: list[Row] = []
    for kind in ("weight", "bias"):
        rows += [
            Rename(
                hf=f"{hf}layer_norm1.{kind}", megatron=f"{attention}linear_qkv.layer_norm_{kind}"
            ),
            qkv_row(f"{hf}self_attn.", attention, kind, heads, heads, vision.hidden_size // heads),
            Rename(hf=f"{hf}self_attn.out_proj.{kind}", megatron=f"{attention}linear_proj.{kind}"),
            Rename(hf=f"{hf}layer_norm2.{kind}", megatron=f"{mlp}linear_fc1.layer_norm_{kind}"),
            Rename(hf=f"{hf}mlp.fc1.{kind}", megatron=f"{mlp}linear_fc1.{kind}"),
            Rename(hf=f"{hf}mlp.fc2.{kind}", megatron=f"{mlp}linear_fc2.{kind}"),
        ]
    return rows
