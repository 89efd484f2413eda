"""CLIP as transformers computes it, inside the Megatron-Core model.

Whole on each tensor-parallel rank, with attention as PyTorch has it. In checkpoints its tensors
have the names and shapes of `ClipTower`, so each of both reads what the other one has saved.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.utils import make_sharded_tensor_for_checkpoint
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from models.image_slots.layer_names import CLIP, FUSED, LAYER, QUERY_KEY_VALUE
from models.image_slots.tower import VisionTower
from models.llava.config import HFClipTowerConfig

_LAYERS = "encoder.layers."
_OF_A_LAYER = {**LAYER, **FUSED}


class HFClipTower(VisionTower):
    """A vision transformer of transformers, of the layers that reach the features.

    Args:
        config: sizes; `num_layers - num_carried_layers` layers run.
    """

    def __init__(self, config: HFClipTowerConfig) -> None:
        super().__init__(config)
        self.num_running_layers = config.num_layers - config.num_carried_layers
        model = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.ffn_hidden_size,
                num_hidden_layers=self.num_running_layers,
                num_attention_heads=config.num_attention_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                layer_norm_eps=config.layernorm_epsilon,
                hidden_act="quick_gelu",
                attn_implementation="sdpa",
            )
        )
        if config.recompute_granularity == "full":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.transformer = model.vision_model
        del self.transformer.post_layernorm  # carried through, as it is not applied
        for layer in self.transformer.encoder.layers:
            _fuse(layer.self_attn)
        if config.params_dtype is not None:
            self.transformer.to(config.params_dtype)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode normalised images; the class token comes first where it is kept."""
        hidden = self.transformer.pre_layrnorm(self.transformer.embeddings(pixels))
        hidden = self.transformer.encoder(inputs_embeds=hidden).last_hidden_state
        return hidden[:, 0 if self.config.keep_class_token else 1 :].contiguous()

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Return the parameters by their own names, each with its place in `ClipTower`'s."""
        assert not sharded_offsets
        other_names = ("non_homogeneous_layers", "singleton_local_shards")  # of layers
        assert not any((metadata or {}).get(name) for name in other_names)
        entries: ShardedStateDict = {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            key, offsets = self._place(name.removeprefix("transformer."))
            entries[f"{prefix}{name}"] = make_sharded_tensor_for_checkpoint(
                tensor, f"{prefix}{key}", offsets
            )
        return entries

    def _place(self, name: str) -> tuple[str, tuple[tuple[int, int, int], ...]]:
        """Return the name in a checkpoint, and of a layer's tensor its place among all layers'."""
        if not name.startswith(_LAYERS):
            return CLIP.get(name, name), ()  # before the layers, or carried through
        number, _, own = name.removeprefix(_LAYERS).partition(".")
        layer = (0, int(number), self.num_running_layers)
        return f"decoder.layers.{_OF_A_LAYER[own]}", (layer,)


class _Fused(torch.nn.Module):
    """Query, key and value as Megatron-Core has them: of each head one behind another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = torch.nn.Parameter(torch.empty(len(QUERY_KEY_VALUE) * width, width))
        self.bias = torch.nn.Parameter(torch.zeros(len(QUERY_KEY_VALUE) * width))
        torch.nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, part: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias of the query (0), the key (1) or the value (2)."""
        shape = (self.heads, len(QUERY_KEY_VALUE), -1)
        width = self.weight.shape[1]
        weight = self.weight.view(*shape, width)[:, part].reshape(width, width)
        return weight, self.bias.view(shape)[:, part].reshape(width)


class _Part(torch.nn.Module):
    """The linear layer of query, key or value."""

    def __init__(self, fused: _Fused, part: int) -> None:
        super().__init__()
        self.fused = (fused,)  # no submodule: its parameters have one name
        self.part = part

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # Called, not read: the distributed optimizer waits for parameters in a module's hook.
        return functional.linear(hidden, *self.fused[0](self.part))


def _fuse(attention: torch.nn.Module) -> None:
    """Let query, key and value of an attention be parts of one tensor."""
    attention.linear_qkv = _Fused(attention.embed_dim, attention.num_heads)
    for part, name in enumerate(QUERY_KEY_VALUE):
        setattr(attention, name, _Part(attention.linear_qkv, part))
