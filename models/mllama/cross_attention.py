"""Cross-attention layers: the text looks at the image through two learnt gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TEDotProductAttention,
    TELayerNormColumnParallelLinear,
    TENorm,
    TERowParallelLinear,
)
from megatron.core.transformer.attention import Attention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor
from torch.nn.functional import pad

from models.mllama.visibility import HIDDEN, SHOWN


@dataclass
class CrossAttentionSubmodules:
    """Parts of MllamaCrossAttention."""

    linear_q: type
    linear_kv: type
    core_attention: type
    linear_proj: type
    q_layernorm: type
    k_layernorm: type


class MllamaCrossAttention(Attention):
    """Attention from text to vision tokens, with queries and keys normalised per head."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: CrossAttentionSubmodules,
        layer_number: int,
        attn_mask_type: AttnMaskType = AttnMaskType.no_mask,
        **options: Any,
    ) -> None:
        super().__init__(
            config=config,
            submodules=submodules,
            layer_number=layer_number,
            attn_mask_type=attn_mask_type,
            attention_type="cross",
            **options,
        )
        for name, size in (
            ("linear_q", self.query_projection_size),
            ("linear_kv", 2 * self.kv_projection_size),
        ):
            linear = build_module(
                getattr(submodules, name),
                config.hidden_size,
                size,
                config=config,
                init_method=config.init_method,
                gather_output=False,
                bias=config.add_bias_linear,
                skip_bias_add=False,
                is_expert=False,
            )
            setattr(self, name, linear)
        for name in ("q_layernorm", "k_layernorm"):
            norm = build_module(
                getattr(submodules, name),
                config=config,
                hidden_size=self.hidden_size_per_attention_head,
                eps=config.layernorm_epsilon,
            )
            setattr(self, name, norm)

    def get_query_key_value_tensors(  # type: ignore[override]
        self, hidden_states: Tensor, key_value_states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project text to queries and vision tokens to keys and values.

        Returns:
            float[s, b, heads, d] and twice float[vision tokens, b, groups, d], this rank's heads.
        """
        size = self.hidden_size_per_attention_head
        query, _ = self.linear_q(hidden_states)
        query = self.q_layernorm(query.unflatten(-1, (-1, size)))
        key_value, _ = self.linear_kv(key_value_states)
        key, value = key_value.unflatten(-1, (-1, 2 * size)).split(size, dim=-1)
        return query, self.k_layernorm(key.contiguous()), value.contiguous()

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, key_value_states: Tensor, visibility: Tensor
    ) -> Tensor:
        """Attend.

        Args:
            hidden_states: float[s, b, width], or [s / TP, b, width] with sequence parallelism.
            key_value_states: float[vision tokens, b, width], split likewise.
            visibility: int8[b, s, tiles]; see models/mllama/visibility.py.

        Returns:
            float of the shape of `hidden_states`; zero for samples without images.
        """
        query, key, value = self.get_query_key_value_tensors(hidden_states, key_value_states)
        attend = self.core_attention
        if self.checkpoint_core_attention and self.training:
            attend = self._checkpointed_attention_forward
        attended = attend(
            query,
            key,
            value,
            None,
            attn_mask_type=self.attn_mask_type,
            attention_bias=self._bias(visibility, key.shape[0], query.dtype),
        )
        looks = (visibility != HIDDEN).any(dim=-1).transpose(0, 1).unsqueeze(-1)  # [s, b, 1]
        output, bias = self.linear_proj(attended * looks.to(attended.dtype))
        assert bias is None
        return output

    def _bias(self, visibility: Tensor, vision_tokens: int, dtype: torch.dtype) -> Tensor:
        """float[b, 1, s, vision tokens], added to the scores: 0 or the lowest number."""
        hidden = (visibility == HIDDEN).repeat_interleave(self.config.tokens_per_tile, dim=-1)
        hidden = pad(hidden, (0, vision_tokens - hidden.shape[-1]), value=True)
        bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return bias.masked_fill_(hidden, torch.finfo(dtype).min).unsqueeze(1)


class CrossAttentionLayer(TransformerLayer):
    """Cross-attention and an MLP, each scaled by tanh of a gate that starts at 0."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        for name in ("gate_attn", "gate_ffn"):
            gate = torch.nn.Parameter(torch.zeros(1, dtype=config.params_dtype))
            # With sequence parallelism every rank sees a part of the text, and Megatron-Core sums
            # the gradients of the parameters marked so.
            gate.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
            setattr(self, name, gate)

    def forward(
        self,
        hidden_states: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer; without a context (text only) it does nothing.

        Args:
            hidden_states: float[s, b, width], or [s / TP, b, width] with sequence parallelism.
            context: vision tokens, float[vision tokens, b, width], split likewise.
            context_mask: visibility, int8[b, s, tiles].
            **unused: what Megatron-Core hands to self-attention layers.

        Returns:
            The hidden states, and the context as it came.
        """
        if context is None:
            return hidden_states, None
        assert context_mask is not None
        attended = self.cross_attention(hidden_states, context, context_mask)
        hidden_states = hidden_states + self.gate_attn.tanh() * attended
        output, bias = self.mlp(hidden_states)
        assert bias is None
        seen = self._of_this_rank((context_mask == SHOWN).any(dim=-1).transpose(0, 1))
        output = output * seen.unsqueeze(-1).to(output.dtype)
        return hidden_states + self.gate_ffn.tanh() * output, context

    def _of_this_rank(self, rows: Tensor) -> Tensor:
        """[s, b] -> the rows that sequence parallelism leaves to this rank."""
        if not self.config.sequence_parallel:
            return rows
        parts = parallel_state.get_tensor_model_parallel_world_size()
        return rows.chunk(parts)[parallel_state.get_tensor_model_parallel_rank()]


def cross_attention_layer_spec() -> ModuleSpec:
    """Layer specification with Transformer-Engine modules."""
    return ModuleSpec(
        module=CrossAttentionLayer,
        submodules=TransformerLayerSubmodules(
            cross_attention=ModuleSpec(
                module=MllamaCrossAttention,
                submodules=CrossAttentionSubmodules(
                    linear_q=TELayerNormColumnParallelLinear,
                    linear_kv=TEColumnParallelLinear,
                    core_attention=TEDotProductAttention,
                    linear_proj=TERowParallelLinear,
                    q_layernorm=TENorm,
                    k_layernorm=TENorm,
                ),
            ),
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=TELayerNormColumnParallelLinear, linear_fc2=TERowParallelLinear
                ),
            ),
        ),
    )
