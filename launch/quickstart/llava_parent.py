"""A LLaVA directory with random weights: real transformers classes, only small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
)

from launch.quickstart.parents import train_tokenizer

IMAGE_TOKEN = "<image>"


@dataclass(frozen=True, kw_only=True)
class LlavaShape:
    """Sizes of a small model; those of LLaVA-1.5 in the same proportions."""

    vision: Literal["clip", "siglip"] = "clip"
    text: Literal["llama", "mistral", "qwen2", "gpt2", "nemotron"] = "llama"
    siglip_head: bool = False
    siglip_strategy: Literal["full", "default"] = "full"
    image_size: int = 56
    patch_size: int = 14
    vision_width: int = 96
    vision_heads: int = 4
    vision_mlp_width: int = 384
    vision_layers: int = 3
    text_width: int = 128
    text_mlp_width: int = 352
    text_layers: int = 2
    text_heads: int = 4
    text_kv_heads: int = 4
    tied: bool = False
    max_positions: int = 4096


def train_llava_tokenizer() -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE tokenizer with the image token."""
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE_TOKEN]}, replace_additional_special_tokens=False
    )
    return tokenizer


def llava_config(tokenizer: PreTrainedTokenizerBase, shape: LlavaShape) -> LlavaConfig:
    """Builds config.json of a shape."""
    is_clip = shape.vision == "clip"
    return LlavaConfig(
        vision_config={
            "model_type": f"{shape.vision}_vision_model",
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "hidden_size": shape.vision_width,
            "num_attention_heads": shape.vision_heads,
            "intermediate_size": shape.vision_mlp_width,
            "num_hidden_layers": shape.vision_layers,
        }
        | ({} if is_clip else {"vision_use_head": shape.siglip_head}),
        text_config={
            "model_type": shape.text,
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": shape.tied,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **_text_sizes(shape),
        },
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(shape.image_size // shape.patch_size) ** 2,
        vision_feature_select_strategy="default" if is_clip else shape.siglip_strategy,
        tie_word_embeddings=shape.tied,
    )


def _text_sizes(shape: LlavaShape) -> dict[str, Any]:
    if shape.text == "gpt2":
        return {
            "n_embd": shape.text_width,
            "n_layer": shape.text_layers,
            "n_head": shape.text_heads,
            "n_inner": shape.text_mlp_width,
            "n_positions": shape.max_positions,
            "activation_function": "gelu",
        }
    return {
        "hidden_size": shape.text_width,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_heads,
        "num_key_value_heads": shape.text_kv_heads,
        "intermediate_size": shape.text_mlp_width,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-5,
        "norm_eps": 1e-5,
        "sliding_window": None,
    }


def write_llava(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    shape: LlavaShape | None = None,
    seed: int = 0,
) -> None:
    """Writes a model with random weights, and its processor.

    Args:
        directory: The directory to make.
        tokenizer: With the image token; the vocabulary is exactly as large.
        shape: Sizes.
        seed: Seed of the weights.
    """
    shape = shape or LlavaShape()
    config = llava_config(tokenizer, shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    LlavaProcessor(
        image_processor=_image_processor(shape),
        tokenizer=tokenizer,
        patch_size=shape.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(shape.vision == "clip"),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(directory)


def _image_processor(shape: LlavaShape) -> CLIPImageProcessor | SiglipImageProcessor:
    side = {"height": shape.image_size, "width": shape.image_size}
    if shape.vision == "siglip":
        return SiglipImageProcessor(size=side)
    return CLIPImageProcessor(size={"shortest_edge": shape.image_size}, crop_size=side)
