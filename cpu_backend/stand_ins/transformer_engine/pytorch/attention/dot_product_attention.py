"""`te.pytorch.DotProductAttention` over torch's scaled dot product attention."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..collectives import Group, group_size
from ..module.base import ExtraState
from .masks import Mask, Window, hidden_keys, is_plain_causal, normalised_mask_type
from .packed import attend_packed, runs_of_equal_length

_FORMATS = ("sbhd", "bshd", "thd")
_BIAS_TYPES = ("no_bias", "pre_scale_bias", "post_scale_bias")
_EVERYTHING: Window = (-1, -1)


def _check_bias(bias_type: str, bias: Tensor | None) -> None:
    if bias_type not in _BIAS_TYPES or (bias_type == "no_bias") != (bias is None):
        raise ValueError(
            f"core_attention_bias_type={bias_type!r} is not 'no_bias' without a bias, or "
            "'pre_scale_bias' or 'post_scale_bias' with one."
        )


class DotProductAttention(ExtraState):
    """softmax(q k^T * scale + bias, masked) v, for the heads of this process.

    Args:
        num_attention_heads: Query heads of the whole layer, over all processes.
        kv_channels: Size of a head; a pair where keys and values differ.
        num_gqa_groups: Key and value heads of the whole layer; None for as many as query heads.
        attention_dropout: Dropout probability of the attention weights.
        attn_mask_type: One of `masks.MASK_TYPES`.
        window_size: Keys to the left and right that a query sees; -1 for all.
        softmax_scale: 1 / sqrt(kv_channels) if None.
        **unused: Arguments of Transformer Engine that do not change the result on one process.
    """

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        tp_group: Group = None,
        layer_number: int | None = None,
        attention_type: str = "self",
        cp_group: Group = None,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.set_context_parallel_group(cp_group)
        self.num_attention_heads = num_attention_heads
        self.num_gqa_groups = num_gqa_groups or num_attention_heads
        self.attention_dropout = attention_dropout
        self.qkv_format = qkv_format
        self.attn_mask_type = attn_mask_type
        self.window_size: Window = window_size or _EVERYTHING
        self.tp_group = tp_group
        self.layer_number = layer_number
        self.attention_type = attention_type
        key_channels = kv_channels if isinstance(kv_channels, int) else kv_channels[0]
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(key_channels)
        self._get_rng_state_tracker = None if sequence_parallel else get_rng_state_tracker
        self.register_load_state_dict_post_hook(_forgive_missing_extra_state)

    def set_context_parallel_group(self, cp_group: Group, *unused: Any, **unused_too: Any) -> None:
        """Refuses a group of several processes: there is no ring attention here."""
        groups = cp_group if isinstance(cp_group, list) else [cp_group]
        size = max(group_size(group) for group in groups)
        if size > 1:
            raise NotImplementedError(
                f"context_parallel_size={size} is not possible on the CPU backend; use 1."
            )

    def forward(
        self,
        query_layer: Tensor,
        key_layer: Tensor,
        value_layer: Tensor,
        attention_mask: Mask = None,
        qkv_format: str | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_kv: Tensor | None = None,
        cu_seqlens_q_padded: Tensor | None = None,
        cu_seqlens_kv_padded: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        attn_mask_type: str | None = None,
        window_size: tuple[int, int] | None = None,
        core_attention_bias_type: str = "no_bias",
        core_attention_bias: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """Returns `[s, b, h * d]` (sbhd), `[b, s, h * d]` (bshd) or `[tokens, h * d]` (thd).

        Args:
            query_layer: `[s, b, h, d]`, `[b, s, h, d]` or `[tokens, h, d]`.
            key_layer: The same with its own length and `num_gqa_groups` heads.
            value_layer: The same.
            attention_mask: True where hidden; see `masks.hidden_keys`.
            qkv_format: "sbhd", "bshd" or "thd".
            cu_seqlens_q: With thd, cumulative lengths of the packed sequences, from 0.
            cu_seqlens_kv: The same for keys and values.
            cu_seqlens_q_padded: Where the sequences are stored if each is padded.
            cu_seqlens_kv_padded: The same for keys and values.
            max_seqlen_q: Without effect.
            max_seqlen_kv: Without effect.
            attn_mask_type: Overrides the layer's.
            window_size: Overrides the layer's.
            core_attention_bias_type: "no_bias", "pre_scale_bias" or "post_scale_bias".
            core_attention_bias: Added to the scores, broadcastable to `[b, h, sq, skv]`.
            **unused: Arguments of Transformer Engine without effect on the result.
        """
        layout = qkv_format or self.qkv_format
        if layout not in _FORMATS:
            raise ValueError(f"qkv_format={layout!r} is not one of {', '.join(_FORMATS)}.")
        _check_bias(core_attention_bias_type, core_attention_bias)
        mask_type = normalised_mask_type(attn_mask_type or self.attn_mask_type)
        window = self.window_size if window_size is None else window_size
        if core_attention_bias is not None and core_attention_bias_type == "pre_scale_bias":
            core_attention_bias = core_attention_bias * self.softmax_scale

        if layout == "thd":
            # Padding is outside of the packed sequences, so inside there is none to mask.
            mask_type = mask_type.removeprefix("padding_").replace("padding", "no_mask")

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self._attend(
                query, key, value, mask_type, window, attention_mask, core_attention_bias
            )

        if layout == "thd":
            if cu_seqlens_q is None:
                raise ValueError("qkv_format='thd' needs cu_seqlens_q.")
            cu_q = cu_seqlens_q.tolist()
            cu_kv = cu_q if cu_seqlens_kv is None else cu_seqlens_kv.tolist()
            stored_q = cu_q if cu_seqlens_q_padded is None else cu_seqlens_q_padded.tolist()
            stored_kv = cu_kv if cu_seqlens_kv_padded is None else cu_seqlens_kv_padded.tolist()
            runs = runs_of_equal_length(cu_q, cu_kv, stored_q, stored_kv)
            return attend_packed(query_layer, key_layer, value_layer, runs, attend).flatten(-2)

        # [s, b, h, d] or [b, s, h, d] -> [b, h, s, d], and back.
        order = (1, 2, 0, 3) if layout == "sbhd" else (0, 2, 1, 3)
        back = (2, 0, 1, 3) if layout == "sbhd" else (0, 2, 1, 3)
        tensors = (query_layer, key_layer, value_layer)
        output = attend(*(tensor.permute(order) for tensor in tensors))
        return output.permute(back).flatten(-2)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask_type: str,
        window: Window,
        mask: Mask,
        bias: Tensor | None,
    ) -> Tensor:
        """Attention over `[b, h, s, d]`."""
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            # Not enable_gqa: it takes torch's slow path on a CPU, twice the time.
            key = key.repeat_interleave(groups, dim=1)
            value = value.repeat_interleave(groups, dim=1)
        causal = mask_type == "causal" and is_plain_causal(mask_type, window) and bias is None
        allowed: Tensor | None = None
        if not causal:
            hidden = hidden_keys(mask_type, window, mask, query.shape[2], key.shape[2])
            if bias is not None:
                bias = bias.to(query.dtype)
                allowed = bias if hidden is None else bias.masked_fill(hidden, float("-inf"))
            elif hidden is not None:
                allowed = hidden.logical_not()
        dropout = self.attention_dropout if self.training else 0.0
        with self._dropout_random_numbers(dropout):
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=allowed,
                dropout_p=dropout,
                is_causal=causal,
                scale=self.softmax_scale,
            )

    def _dropout_random_numbers(self, dropout: float) -> contextlib.AbstractContextManager[Any]:
        # Heads are split over processes, so each draws its own; the tracker costs, so only then.
        if dropout == 0.0 or self._get_rng_state_tracker is None:
            return contextlib.nullcontext()
        return self._get_rng_state_tracker().fork()


def _forgive_missing_extra_state(module: DotProductAttention, incompatible_keys: Any) -> None:
    """Checkpoints from before FP8 attention have no `core_attention._extra_state`."""
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if not key.endswith("core_attention._extra_state")]
