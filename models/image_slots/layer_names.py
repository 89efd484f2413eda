"""What Megatron-Core calls the tensors of a CLIP's or SigLIP's vision transformer."""

from collections.abc import Mapping

_KINDS = ("weight", "bias")

QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
"""What is one tensor in Megatron-Core: each head's query, key and value, head by head."""

FUSED: Mapping[str, str] = {
    f"self_attn.linear_qkv.{kind}": f"self_attention.linear_qkv.{kind}" for kind in _KINDS
}
"""Of query, key and value together."""

LAYER: Mapping[str, str] = {
    f"{hf}.{kind}": f"{megatron}{kind}"
    for hf, megatron in (
        ("layer_norm1", "self_attention.linear_qkv.layer_norm_"),
        ("self_attn.out_proj", "self_attention.linear_proj."),
        ("layer_norm2", "mlp.linear_fc1.layer_norm_"),
        ("mlp.fc1", "mlp.linear_fc1."),
        ("mlp.fc2", "mlp.linear_fc2."),
    )
    for kind in _KINDS
}
"""Of a layer, all else."""

CLIP: Mapping[str, str] = {
    "embeddings.class_embedding": "class_token",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "position_embeddings.weight",
    # transformers spells it so.
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
}
"""Of a CLIP, what stands before the layers."""
