"""The parts of a vision tower that are never computed, and that export gives back."""

from __future__ import annotations

from collections.abc import Iterable


def carried_name(name: str) -> str:
    """Return the name of a buffer for a tensor: it may hold no dot."""
    return name.replace(".", "__")


def carried_shapes(
    layers: Iterable[int], width: int, inner: int, head: bool = False
) -> dict[str, tuple[int, ...]]:
    """Names (below `vision_model.`) and shapes of the tensors that do not take part.

    Args:
        layers: numbers of the blocks.
        width: of the encoder.
        inner: of the blocks' MLP.
        head: whether there is a head that pools the patches, as SigLIP's.
    """
    block = {
        "layer_norm1.weight": (width,),
        "layer_norm1.bias": (width,),
        "layer_norm2.weight": (width,),
        "layer_norm2.bias": (width,),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
    }
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block[f"self_attn.{projection}.weight"] = (width, width)
        block[f"self_attn.{projection}.bias"] = (width,)
    shapes: dict[str, tuple[int, ...]] = {
        f"encoder.layers.{layer}.{name}": shape for layer in layers for name, shape in block.items()
    }
    shapes["post_layernorm.weight"] = (width,)
    shapes["post_layernorm.bias"] = (width,)
    if head:
        shapes |= _head_shapes(width, inner)
    return shapes


def _head_shapes(width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        "head.probe": (1, 1, width),
        "head.attention.in_proj_weight": (3 * width, width),
        "head.attention.in_proj_bias": (3 * width,),
        "head.attention.out_proj.weight": (width, width),
        "head.attention.out_proj.bias": (width,),
        "head.layernorm.weight": (width,),
        "head.layernorm.bias": (width,),
        "head.mlp.fc1.weight": (inner, width),
        "head.mlp.fc1.bias": (inner,),
        "head.mlp.fc2.weight": (width, inner),
        "head.mlp.fc2.bias": (width,),
    }


def internvit_carried_shapes(
    layers: Iterable[int], width: int, inner: int, final_norm: bool
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of an InternViT that do not take part.

    Args:
        layers: numbers of the blocks.
        width: of the encoder.
        inner: of the blocks' MLP.
        final_norm: whether there is one behind the blocks.
    """
    block: dict[str, tuple[int, ...]] = {"lambda_1": (width,), "lambda_2": (width,)}
    for norm in ("layernorm_before", "layernorm_after"):
        block |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for projection in ("q_proj", "k_proj", "v_proj", "projection_layer"):
        block[f"attention.{projection}.weight"] = (width, width)
        block[f"attention.{projection}.bias"] = (width,)
    block |= {"mlp.fc1.weight": (inner, width), "mlp.fc1.bias": (inner,)}
    block |= {"mlp.fc2.weight": (width, inner), "mlp.fc2.bias": (width,)}
    shapes: dict[str, tuple[int, ...]] = {
        f"encoder.layer.{layer}.{name}": shape for layer in layers for name, shape in block.items()
    }
    if final_norm:
        shapes |= {"layernorm.weight": (width,), "layernorm.bias": (width,)}
    return shapes
