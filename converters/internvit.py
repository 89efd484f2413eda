"""Rows of an InternViT, by its names in transformers; the original files have others."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from converters.lazy import LazyTensor, Stacked
from converters.parts import carried_rows
from converters.rows import Rename, Row, qkv_row
from models.image_slots.carried import internvit_carried_shapes

_ORIGINAL = {
    r"embeddings\.class_embedding": "embeddings.cls_token",
    r"embeddings\.position_embedding$": "embeddings.position_embeddings",
    r"embeddings\.patch_embedding\.": "embeddings.patch_embeddings.projection.",
    r"encoder\.layers\.(\d+)\.norm1\.": r"encoder.layer.\1.layernorm_before.",
    r"encoder\.layers\.(\d+)\.norm2\.": r"encoder.layer.\1.layernorm_after.",
    r"encoder\.layers\.(\d+)\.attn\.proj\.": r"encoder.layer.\1.attention.projection_layer.",
    r"encoder\.layers\.(\d+)\.ls([12])": r"encoder.layer.\1.lambda_\2",
    r"encoder\.layers\.(\d+)\.mlp\.": r"encoder.layer.\1.mlp.",
}
_FUSED = re.compile(r"(.*)encoder\.layers\.(\d+)\.attn\.qkv\.(weight|bias)")


def transformers_names(tensors: Mapping[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """Return tensors of an original InternViT under their names in transformers.

    Query, key and value, which are one tensor there, become three.

    Args:
        tensors: of either style.
        prefix: of all names.
    """
    renamed: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        fused = _FUSED.fullmatch(name)
        if fused is None:
            renamed[_renamed(name, prefix)] = tensor
            continue
        width = tensor.rows // 3
        for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
            own = f"{fused[1]}encoder.layer.{fused[2]}.attention.{part}.{fused[3]}"
            run = (tensor, number * width, width)
            renamed[own] = Stacked((run,), (width, *tensor.shape[1:]), tensor.dtype)
    return renamed


def internvit_table(
    vision: PretrainedConfig,
    num_carried_layers: int,
    hf: str = "vision_tower.",
    megatron: str = "vision_model.",
) -> list[Row]:
    """Rows of an InternViT below the given prefixes."""
    rows: list[Row] = [
        Rename(hf=f"{hf}embeddings.cls_token", megatron=f"{megatron}class_token"),
        Rename(
            hf=f"{hf}embeddings.position_embeddings",
            megatron=f"{megatron}position_embeddings.weight",
        ),
    ]
    rows += [
        Rename(
            hf=f"{hf}embeddings.patch_embeddings.projection.{kind}",
            megatron=f"{megatron}conv1.{kind}",
        )
        for kind in ("weight", "bias")
    ]
    running = vision.num_hidden_layers - num_carried_layers
    for layer in range(running):
        rows += _layer(vision, f"{hf}encoder.layer.{layer}.", f"{megatron}decoder.layers.{layer}.")
    carried = internvit_carried_shapes(
        range(running, vision.num_hidden_layers),
        vision.hidden_size,
        vision.intermediate_size,
        not vision.use_mean_pooling,
    )
    return rows + carried_rows(carried, hf, megatron)


def _layer(vision: PretrainedConfig, hf: str, megatron: str) -> list[Row]:
    attention, mlp, heads = (
        f"{megatron}self_attention.",
        f"{megatron}mlp.",
        vision.num_attention_heads,
    )
    rows: list[Row] = [
        Rename(hf=f"{hf}lambda_1", megatron=f"{megatron}attention_scale"),
        Rename(hf=f"{hf}lambda_2", megatron=f"{megatron}mlp_scale"),
    ]
    for kind in ("weight", "bias"):
        rows += [
            Rename(
                hf=f"{hf}layernorm_before.{kind}",
                megatron=f"{attention}linear_qkv.layer_norm_{kind}",
            ),
            qkv_row(f"{hf}attention.", attention, kind, heads, heads, vision.hidden_size // heads),
            Rename(
                hf=f"{hf}attention.projection_layer.{kind}",
                megatron=f"{attention}linear_proj.{kind}",
            ),
            Rename(hf=f"{hf}layernorm_after.{kind}", megatron=f"{mlp}linear_fc1.layer_norm_{kind}"),
            Rename(hf=f"{hf}mlp.fc1.{kind}", megatron=f"{mlp}linear_fc1.{kind}"),
            Rename(hf=f"{hf}mlp.fc2.{kind}", megatron=f"{mlp}linear_fc2.{kind}"),
        ]
    return rows


def _renamed(name: str, prefix: str) -> str:
    for original, own in _ORIGINAL.items():
        found = re.match(re.escape(prefix) + original, name)
        if found is not None:
            return prefix + found.expand(own) + name[found.end() :]
    return name
