"""Rotary position embeddings, what Megatron-Core uses with `apply_rope_fusion`."""

import torch
from torch import Tensor


def _rotate(t: Tensor, freqs: Tensor) -> Tensor:
    """Rotates the first features of `t` by the angles, in fp32; the rest passes through.

    Args:
        t: `[..., heads, head_dim]`.
        freqs: Angles in radians, broadcastable to `[..., heads, rotated]`, the two halves of the
            last dimension alike.
    """
    rotated_size = freqs.shape[-1]
    rotated, passed = t[..., :rotated_size].float(), t[..., rotated_size:]
    first, second = rotated.chunk(2, dim=-1)
    angles = freqs.float()
    turned = torch.cat((-second, first), dim=-1)
    result = (rotated * angles.cos() + turned * angles.sin()).to(t.dtype)
    return result if passed.shape[-1] == 0 else torch.cat((result, passed), dim=-1)


def apply_rotary_pos_emb(
    t: Tensor,
    freqs: Tensor,
    tensor_format: str = "sbhd",
    fused: bool = False,
    cu_seqlens: Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> Tensor:
    """Rotates queries or keys by the angles of their positions.

    Args:
        t: `[s, b, heads, head_dim]` (sbhd), `[b, s, heads, head_dim]` (bshd) or
            `[tokens, heads, head_dim]` (thd).
        freqs: `[positions, 1, 1, rotated]`, angles in radians.
        tensor_format: "sbhd", "bshd" or "thd".
        fused: Without effect.
        cu_seqlens: With thd: where sequences start, and the end of the last one; positions start
            from 0 in every sequence.
        cp_size: Must be 1.
        cp_rank: Without effect.
    """
    if cp_size > 1:
        raise NotImplementedError(
            f"context_parallel_size={cp_size} is not possible on the CPU backend; use 1."
        )
    if tensor_format == "sbhd":
        return _rotate(t, freqs[: t.shape[0]])
    if tensor_format == "bshd":
        return _rotate(t, freqs[: t.shape[1]].transpose(0, 1))
    if tensor_format != "thd" or cu_seqlens is None:
        raise ValueError(
            f"tensor_format={tensor_format!r} is not 'sbhd', 'bshd', or 'thd' with cu_seqlens."
        )
    tokens = torch.arange(t.shape[0], device=cu_seqlens.device)
    segments = torch.bucketize(tokens, cu_seqlens[1:-1], right=True)
    positions = tokens - cu_seqlens[segments]
    return _rotate(t, freqs[positions, 0])
