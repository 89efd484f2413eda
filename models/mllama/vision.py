"""The vision encoder of MLlama: a transformer over all tiles of an image, then a gated one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.extensions.transformer_engine import (
    TENorm,
)
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn.functional import pad

from models.mllama.config import MllamaVisionConfig
from models.vision_layer import vision_layer_spec

# The published norms before and after the first transformer have PyTorch's default.
_OUTER_NORM_EPSILON = 1e-5


class BiasFreeSelfAttention(SelfAttention):
    """Self-attention without biases in a model whose MLPs have them."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        config = copy.copy(config)
        config.add_bias_linear = False
        super().__init__(config, *arguments, **options)


class GatedTransformerLayer(TransformerLayer):
    """A layer whose two branches are scaled by tanh of a learnt gate each."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.gate_attn = torch.nn.Parameter(torch.zeros(1, dtype=config.params_dtype))
        self.gate_ffn = torch.nn.Parameter(torch.zeros(1, dtype=config.params_dtype))

    def forward(self, hidden_states: Tensor, **options: Any) -> tuple[Tensor, None]:
        """float[s, b, width] -> float[s, b, width]; the second value is Megatron-Core's context."""
        attended, bias = self.self_attention(
            self.input_layernorm(hidden_states),
            attention_mask=None,
            attention_bias=options["attention_bias"],
        )
        assert bias is None
        hidden_states = hidden_states + self.gate_attn.tanh() * attended
        output, bias = self.mlp(self.pre_mlp_layernorm(hidden_states))
        output = output if bias is None else output + bias
        return hidden_states + self.gate_ffn.tanh() * output, None


class TappedTransformerBlock(TransformerBlock):
    """A block that also returns the inputs of some of its layers."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_bias: Tensor, tapped: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all layers.

        Args:
            hidden_states: float[s, b, width].
            attention_bias: float[b, 1, s, s], added to the scores.
            tapped: layers whose inputs are wanted; the number of layers stands for the output.

        Returns:
            The output and the wanted inputs in the order of `tapped`, each float[s, b, width].
        """
        recompute = self.training and self.config.recompute_granularity == "full"
        inputs = []
        for layer in self.layers:
            inputs.append(hidden_states)

            def run(hidden: Tensor, layer: torch.nn.Module = layer) -> Tensor:
                return layer(
                    hidden_states=hidden, attention_mask=None, attention_bias=attention_bias
                )[0]

            if recompute:
                hidden_states = tensor_parallel.checkpoint(run, False, hidden_states)
            else:
                hidden_states = run(hidden_states)
        inputs.append(hidden_states)
        return hidden_states, [inputs[index] for index in tapped]


class MllamaVisionModel(MegatronModule):
    """Patch embedding, tile and position embeddings, and the two transformers.

    Args:
        config: sizes.
    """

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__(config=config)
        width, tiles, tokens = config.hidden_size, config.max_num_tiles, config.tokens_per_tile
        ratios, dtype = config.num_aspect_ratios + 1, config.params_dtype
        self.patch_embedding = torch.nn.Conv2d(
            3, width, config.patch_size, stride=config.patch_size, bias=False, dtype=dtype
        )
        scale = width**-0.5
        self.class_embedding = torch.nn.Parameter((scale * torch.randn(width)).to(dtype))
        self.position_embedding = torch.nn.Parameter((scale * torch.randn(tokens, width)).to(dtype))
        self.tile_position_embedding = torch.nn.Embedding(
            ratios, tiles * tokens * width, dtype=dtype
        )
        self.pre_tile_embedding = torch.nn.Embedding(ratios, tiles * width, dtype=dtype)
        self.post_tile_embedding = torch.nn.Embedding(ratios, tiles * width, dtype=dtype)
        for name in ("position_gate", "pre_tile_gate", "post_tile_gate"):
            setattr(self, name, torch.nn.Parameter(torch.zeros(1, dtype=dtype)))
        for name in ("layernorm_pre", "layernorm_post"):
            setattr(self, name, TENorm(config, hidden_size=width, eps=_OUTER_NORM_EPSILON))
        self.local_encoder = TappedTransformerBlock(
            config=config,
            spec=vision_layer_spec(self_attention=BiasFreeSelfAttention),
            pre_process=True,
            post_process=False,
        )
        following = copy.copy(config)
        following.num_layers = config.num_global_layers
        self.global_encoder = TappedTransformerBlock(
            config=following,
            spec=vision_layer_spec(GatedTransformerLayer, BiasFreeSelfAttention),
            pre_process=True,
            post_process=False,
        )

    def set_input_tensor(self, input_tensor: Tensor) -> None:
        """Do nothing: the encoder stands at the beginning of the pipeline."""

    def forward(self, tiles: Tensor, tiles_per_image: Tensor, aspect_ratio_ids: Tensor) -> Tensor:
        """Encode images; every image is computed in all its tile slots, as published.

        Args:
            tiles: uint8[t, 3, H, W], the tiles of all images in order.
            tiles_per_image: int64[i], in host memory.
            aspect_ratio_ids: int64[i].

        Returns:
            float[i, slots, tokens per tile, output size].
        """
        config = self.config
        images, slots = len(tiles_per_image), config.max_num_tiles
        used = torch.arange(slots) < tiles_per_image.cpu().unsqueeze(1)  # [i, slots]
        used = used.to(tiles.device)
        hidden = self.patch_embedding(self._pixels(tiles, used).flatten(0, 1))
        hidden = hidden.flatten(2).transpose(1, 2).unflatten(0, (images, slots))
        hidden = self._add_tile_embedding(
            hidden, self.pre_tile_embedding(aspect_ratio_ids), self.pre_tile_gate
        )
        hidden = self._add_positions(self._prepend_class(hidden), aspect_ratio_ids)
        hidden = self.layernorm_pre(hidden)
        hidden = pad(hidden, (0, 0, 0, config.padded_tokens_per_tile - config.tokens_per_tile))
        bias = self._attention_bias(used, hidden.dtype)
        hidden = hidden.flatten(1, 2).transpose(0, 1).contiguous()  # [slots * tokens, i, width]
        hidden, tapped = self.local_encoder(hidden, bias, config.tapped_layers)
        hidden = self.layernorm_post(hidden)
        hidden = self._by_tile(hidden)
        hidden = self._add_tile_embedding(
            hidden, self.post_tile_embedding(aspect_ratio_ids), self.post_tile_gate
        )
        hidden = hidden.flatten(1, 2).transpose(0, 1).contiguous()
        hidden, _ = self.global_encoder(hidden, bias)
        # The tapped features are interleaved by channel, as published.
        features = [self._by_tile(hidden)]
        if tapped:
            features.append(self._by_tile(torch.stack(tapped, dim=-1).flatten(2)))
        return torch.cat(features, dim=-1)[:, :, : config.tokens_per_tile]

    def _pixels(self, tiles: Tensor, used: Tensor) -> Tensor:
        """uint8 tiles -> normalised float[i, slots, 3, H, W]; unused slots are 0."""
        mean, std = (
            torch.tensor(values, device=tiles.device, dtype=torch.float32).view(3, 1, 1)
            for values in (self.config.pixel_mean, self.config.pixel_std)
        )
        normalised = ((tiles.float() / 255.0 - mean) / std).to(self.patch_embedding.weight.dtype)
        pixels = normalised.new_zeros((*used.shape, *tiles.shape[1:]))
        pixels[used] = normalised
        return pixels

    def _add_tile_embedding(self, hidden: Tensor, embedding: Tensor, gate: Tensor) -> Tensor:
        embedding = embedding.view(-1, self.config.max_num_tiles, 1, self.config.hidden_size)
        return hidden + embedding * gate.tanh()

    def _prepend_class(self, hidden: Tensor) -> Tensor:
        first = self.class_embedding.expand(*hidden.shape[:2], 1, -1)
        return torch.cat([first, hidden], dim=2)

    def _add_positions(self, hidden: Tensor, aspect_ratio_ids: Tensor) -> Tensor:
        gate = self.position_gate.tanh()
        by_tile = self.tile_position_embedding(aspect_ratio_ids).view(hidden.shape)
        return hidden + (1 - gate) * self.position_embedding + gate * by_tile

    def _attention_bias(self, used: Tensor, dtype: torch.dtype) -> Tensor:
        """Hide padding from padding, and only that, as published: float[i, 1, s, s]."""
        config = self.config
        in_tile = torch.arange(config.padded_tokens_per_tile, device=used.device)
        is_padding = ~(used.unsqueeze(-1) & (in_tile < config.tokens_per_tile)).flatten(1)
        hidden = is_padding.unsqueeze(1) & is_padding.unsqueeze(2)
        bias = torch.zeros(hidden.shape, dtype=dtype, device=used.device)
        return bias.masked_fill_(hidden, torch.finfo(dtype).min).unsqueeze(1)

    def _by_tile(self, hidden: Tensor) -> Tensor:
        """float[slots * tokens, i, width] -> float[i, slots, tokens, width]."""
        return hidden.transpose(0, 1).unflatten(1, (self.config.max_num_tiles, -1))
