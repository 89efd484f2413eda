"""The table between NVILA's Hugging Face tensors (flat `nvila_lite` names) and Megatron-Core's."""

from __future__ import annotations

from converters.mapping import FuseGateUp, FuseQkv, PadRows, Rename, Row
from models.nvila.config import NvilaConfig, NvilaLanguageConfig, SiglipTowerConfig
from models.nvila.projector import projector_parameter_names
from models.nvila.vision import CARRIED_SEPARATOR, carried_shapes


def nvila_table(config: NvilaConfig) -> list[Row]:
    """Rows for a whole model.

    Args:
        config: sizes; the vocabulary size must be known.
    """
    language, vision = config.language_transformer_config, config.vision_transformer_config
    assert language is not None
    assert vision is not None
    rows = language_table(language)
    rows += vision_table(vision)
    rows += [
        Rename(hf=f"mm_projector.{name}", megatron=f"vision_projection.{name}")
        for name in projector_parameter_names(config)
    ]
    return rows


def language_table(
    config: NvilaLanguageConfig, hf: str = "llm.", megatron: str = "language_model."
) -> list[Row]:
    """Rows of a Qwen2 language model below the given prefixes."""
    assert config.vocab_size is not None
    vocabulary = {"rows": config.vocab_size, "padded_rows": config.padded_vocab_size()}
    rows: list[Row] = [
        PadRows(
            hf=f"{hf}model.embed_tokens.weight",
            megatron=f"{megatron}embedding.word_embeddings.weight",
            **vocabulary,
        ),
        Rename(hf=f"{hf}model.norm.weight", megatron=f"{megatron}decoder.final_layernorm.weight"),
    ]
    if not config.share_embeddings_and_output_weights:
        rows.append(
            PadRows(
                hf=f"{hf}lm_head.weight", megatron=f"{megatron}output_layer.weight", **vocabulary
            )
        )
    for layer in range(config.num_layers):
        rows += _language_layer(
            config, f"{hf}model.layers.{layer}.", f"{megatron}decoder.layers.{layer}."
        )
    return rows


def _language_layer(config: NvilaLanguageConfig, hf: str, megatron: str) -> list[Row]:
    attention, mlp = f"{megatron}self_attention.", f"{megatron}mlp."
    return [
        Rename(
            hf=f"{hf}input_layernorm.weight", megatron=f"{attention}linear_qkv.layer_norm_weight"
        ),
        *(_qkv(config, f"{hf}self_attn.", attention, kind) for kind in ("weight", "bias")),
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
    config: SiglipTowerConfig,
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
    for layer in range(config.num_layers - config.num_carried_layers):
        rows += _vision_layer(
            config, f"{hf}encoder.layers.{layer}.", f"{megatron}decoder.layers.{layer}."
        )
    rows += [
        Rename(
            hf=f"{hf}{name}",
            megatron=f"{megatron}carried.{name.replace('.', CARRIED_SEPARATOR)}",
        )
        for name in carried_shapes(config)
    ]
    return rows


def _vision_layer(config: SiglipTowerConfig, hf: str, megatron: str) -> list[Row]:
    attention, mlp = f"{megatron}self_attention.", f"{megatron}mlp."
    rows: list[Row] = []
    for kind in ("weight", "bias"):
        rows += [
            Rename(
                hf=f"{hf}layer_norm1.{kind}", megatron=f"{attention}linear_qkv.layer_norm_{kind}"
            ),
            _qkv(config, f"{hf}self_attn.", attention, kind),
            Rename(hf=f"{hf}self_attn.out_proj.{kind}", megatron=f"{attention}linear_proj.{kind}"),
            Rename(hf=f"{hf}layer_norm2.{kind}", megatron=f"{mlp}linear_fc1.layer_norm_{kind}"),
            Rename(hf=f"{hf}mlp.fc1.{kind}", megatron=f"{mlp}linear_fc1.{kind}"),
            Rename(hf=f"{hf}mlp.fc2.{kind}", megatron=f"{mlp}linear_fc2.{kind}"),
        ]
    return rows


def _qkv(config: NvilaLanguageConfig | SiglipTowerConfig, hf: str, megatron: str, kind: str) -> Row:
    assert config.num_query_groups is not None
    assert config.kv_channels is not None
    return FuseQkv(
        query=f"{hf}q_proj.{kind}",
        key=f"{hf}k_proj.{kind}",
        value=f"{hf}v_proj.{kind}",
        megatron=f"{megatron}linear_qkv.{kind}",
        num_heads=config.num_attention_heads,
        num_groups=config.num_query_groups,
        head_size=config.kv_channels,
    )
