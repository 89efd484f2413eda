"""InternViT as a Megatron-Core vision transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from transformers import PretrainedConfig

from models.image_slots.carried import internvit_carried_shapes
from models.image_slots.tower import PreNormTower, PreNormTowerConfig
from models.llava.description import square_side


@dataclass
class InternVitTowerConfig(PreNormTowerConfig):
    """InternViT; the defaults are 300M at 448 px."""

    num_layers: int = 24
    num_carried_layers: int = 0
    hidden_size: int = 1024
    ffn_hidden_size: int = 4096
    num_attention_heads: int = 16
    image_size: int = 448
    keep_class_token: bool = False
    """Whether the class token is one of the features (`full` in config.json)."""

    has_final_norm: bool = False
    """Whether the checkpoint has a norm behind the blocks, which is carried through."""

    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    layernorm_epsilon: float = 1e-6
    activation_func: Callable = torch.nn.functional.gelu


class ScaledTransformerLayer(TransformerLayer):
    """A layer whose two branches are scaled, channel by channel, before they are added."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        width, dtype = config.hidden_size, config.params_dtype
        self.attention_scale = torch.nn.Parameter(torch.full((width,), 0.1, dtype=dtype))
        self.mlp_scale = torch.nn.Parameter(torch.full((width,), 0.1, dtype=dtype))

    def forward(self, hidden_states: Tensor, **options: Any) -> tuple[Tensor, None]:
        """float[s, b, width] -> float[s, b, width]; the second value is Megatron-Core's context."""
        attended = _with_bias(self.self_attention(hidden_states, attention_mask=None))
        hidden_states = hidden_states + self.attention_scale * attended
        output = _with_bias(self.mlp(hidden_states))
        return hidden_states + self.mlp_scale * output, None


def _with_bias(output_and_bias: tuple[Tensor, Tensor | None]) -> Tensor:
    output, bias = output_and_bias
    return output if bias is None else output + bias


class _Positions(torch.nn.Module):
    """Learned positions with the shape that their file has."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, count, width))

    def forward(self, places: Tensor) -> Tensor:
        """int64[n] -> float[1, n, width]."""
        return self.weight[:, places]


class InternVitTower(PreNormTower):
    """A class token before the patches, learned positions, and blocks with scaled branches.

    Args:
        config: sizes; `num_layers - num_carried_layers` blocks run.
    """

    layer = ScaledTransformerLayer

    def __init__(self, config: InternVitTowerConfig) -> None:
        positions = _Positions(config.grid**2 + 1, config.hidden_size)
        super().__init__(config, positions, patch_bias=True)
        self.class_token = torch.nn.Parameter(
            torch.zeros(1, 1, config.hidden_size, dtype=config.params_dtype)
        )

    def carried_shapes(self, config: PreNormTowerConfig) -> dict[str, tuple[int, ...]]:
        """Return the layers that do not run, and the final norm where there is one."""
        assert isinstance(config, InternVitTowerConfig)
        return internvit_carried_shapes(
            range(config.num_layers - config.num_carried_layers, config.num_layers),
            config.hidden_size,
            config.ffn_hidden_size,
            config.has_final_norm,
        )

    def features(self, pixels: Tensor) -> Tensor:
        """Encode normalised images; the class token comes first where it is kept."""
        class_token = self.class_token.expand(len(pixels), 1, -1)
        hidden = torch.cat([class_token, self.patches(pixels)], dim=1)
        hidden = self.run_blocks(self.with_positions(hidden))
        return hidden[:, 0 if self.config.keep_class_token else 1 :].contiguous()


def internvit_config_from_hf(
    vision: PretrainedConfig, vision_feature_layer: int, select_strategy: str
) -> InternVitTowerConfig:
    """Translate a Hugging Face InternVLVisionConfig.

    Raises:
        ValueError: it asks for something that this tower does not have.
    """
    unsupported = {
        "attention_bias": not vision.attention_bias,
        "use_qk_norm": vision.use_qk_norm,
        "norm_type": vision.norm_type != "layer_norm",
        "hidden_act": vision.hidden_act != "gelu",
        "use_mask_token": vision.use_mask_token,
        "use_absolute_position_embeddings": not vision.use_absolute_position_embeddings,
    }
    for name, is_used in unsupported.items():
        if is_used:
            raise ValueError(
                f"{name}: {getattr(vision, name)!r} of the vision tower is not supported; an "
                "InternViT-300M (biases, layer norms, gelu, no norm of queries and keys) is."
            )
    return InternVitTowerConfig(
        num_layers=vision.num_hidden_layers,
        num_carried_layers=-vision_feature_layer - 1,
        hidden_size=vision.hidden_size,
        ffn_hidden_size=vision.intermediate_size,
        num_attention_heads=vision.num_attention_heads,
        image_size=square_side(vision.image_size),
        patch_size=square_side(vision.patch_size),
        keep_class_token=select_strategy == "full",
        has_final_norm=not vision.use_mean_pooling,
        layernorm_epsilon=vision.layer_norm_eps,
    )
