"""Small language models and vision towers of every kind that a LLaVA can have."""

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    InternVLVisionConfig,
    InternVLVisionModel,
    LlamaConfig,
    MistralConfig,
    NemotronConfig,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

LANGUAGES = {
    "llama": "nano",
    "mistral": "nano",
    "qwen2": "nano_qwen2",
    "nemotron": "nano_nemotron",
    "gpt2": "nano_gpt2",
}
"""The sizes of recipes.llava that they have."""

_SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "max_position_embeddings": 512,
}
_CONFIGS = {
    "llama": (LlamaConfig, _SIZES | {"rms_norm_eps": 1e-5}),
    "mistral": (MistralConfig, _SIZES | {"rms_norm_eps": 1e-5, "sliding_window": None}),
    "qwen2": (Qwen2Config, _SIZES | {"rms_norm_eps": 1e-5, "num_key_value_heads": 2}),
    "nemotron": (NemotronConfig, _SIZES | {"norm_eps": 1e-5, "head_dim": 32}),
    "gpt2": (
        GPT2Config,
        {
            "n_embd": 128,
            "n_layer": 2,
            "n_head": 4,
            "n_inner": 512,
            "n_positions": 512,
            "activation_function": "gelu",
        },
    ),
}
_VISION_SIZES = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "image_size": 84,
    "patch_size": 14,
}
_TOWERS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig(**_VISION_SIZES)),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**_VISION_SIZES, vision_use_head=False)),
    "internvit": (
        InternVLVisionModel,
        InternVLVisionConfig(**_VISION_SIZES, attention_bias=True, layer_norm_eps=1e-6),
    ),
}
TOWERS = (*_TOWERS, "clip_hf")


def write_language(kind, directory, tokenizer):
    config_class, sizes = _CONFIGS[kind]
    config = config_class(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=kind == "gpt2",
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_tower(kind, directory):
    model_class, config = _TOWERS[kind.removesuffix("_hf")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model_class(config).save_pretrained(directory)
