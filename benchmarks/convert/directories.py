"""Hugging Face directories of published shapes, with random weights that are never in memory.

Importing NeMo's classes needs the backend, so `python -m benchmarks.convert.directories SHAPE DIR`
is a process of its own.
"""

import json
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MllamaConfig, PreTrainedTokenizerFast

from converters.families import family_named
from converters.file_writer import write_files
from converters.hf_directory import write_assets, write_code
from converters.hf_weights import plan_weights
from converters.lazy import LazyTensor
from launch.quickstart.mllama_parent import MllamaShape, train_mllama_tokenizer, write_mllama
from launch.quickstart.parents import train_tokenizer
from models.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.hf_code.prompt_nvila_lite import IMAGE_TOKEN

NOISE_BYTES = 2**26
MLLAMA_VOCABULARY, NVILA_VOCABULARY = 128_256, 151_672
MLLAMA_VISION = {
    "hidden_size": 1280,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "image_size": 560,
    "patch_size": 14,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "vision_output_dim": 7680,
}
NVILA_VISION = {
    "image_size": 448,
    "patch_size": 14,
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
}


MLLAMA_NANO_VISION = MLLAMA_VISION | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_global_layers": 1,
    "intermediate_layers_indices": [1],
    "vision_output_dim": 128,
}
NVILA_NANO_VISION = NVILA_VISION | {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
}
ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def mllama_text(layers: int, hidden: int = 4096, heads: int = 32, inner: int = 14336) -> dict:
    return {
        "vocab_size": MLLAMA_VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": inner,
        "cross_attention_layers": list(range(3, layers, 5)),
        "rope_scaling": ROPE,
    }


def nvila_text(layers: int, hidden: int, heads: int, groups: int, inner: int) -> dict:
    return {
        "vocab_size": NVILA_VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": inner,
        "tie_word_embeddings": False,
    }


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mllama-nano": (mllama_text(5, 64, 8, 128), MLLAMA_NANO_VISION),
    "mllama-small": (mllama_text(9, 2048, 16, 4096), MLLAMA_VISION),
    "mllama-11b": (mllama_text(40), MLLAMA_VISION),
    "nvila-nano": (nvila_text(2, 64, 4, 2, 96), NVILA_NANO_VISION),
    "nvila-8b": (nvila_text(28, 3584, 28, 4, 18944), NVILA_VISION),
    "nvila-15b": (nvila_text(48, 5120, 40, 8, 13824), NVILA_VISION),
}
"""Configurations of the language model and of the vision encoder."""


class Noise(LazyTensor):
    """A tensor of random bits, the same in every place of the same row."""

    _bits: Tensor | None = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, torch.bfloat16

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop)."""
        if Noise._bits is None:
            generator = torch.Generator().manual_seed(0)
            size = (NOISE_BYTES // 2,)
            Noise._bits = torch.randn(size, generator=generator).mul_(0.02).to(torch.bfloat16)
        width = prod(self.shape[1:])
        places = (torch.arange(start, stop) * 7919 + width) % (len(Noise._bits) - width)
        rows = torch.stack([Noise._bits[place : place + width] for place in places.tolist()])
        return rows.reshape(stop - start, *self.shape[1:])


def widened(tokenizer: PreTrainedTokenizerFast, last: str | None, size: int) -> Any:
    """Fills a tokenizer's vocabulary up with words that no text has; `last` gets the next id."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [token for token in content["added_tokens"] if token["content"] != last]
    vocabulary = content["model"]["vocab"]
    used = set(vocabulary.values()) | {token["id"] for token in added}
    free = (number for number in range(size) if number not in used)
    vocabulary |= {f"filler{number}": number for number in free}
    if last is not None:
        vocabulary.pop(last, None)
        (token,) = (token for token in content["added_tokens"] if token["content"] == last)
        added.append(token | {"id": size})
    content["added_tokens"] = added
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    return tokenizer


def write_directory(name: str, directory: Path) -> None:
    """Writes configuration, tokenizer, processor and weights of a shape."""
    family_name = name.partition("-")[0]
    write = write_mllama_files if family_name == "mllama" else write_nvila_files
    write(directory, *SHAPES[name])
    shapes = family_named(family_name).hf_shapes(directory)
    tasks = plan_weights(directory, {key: Noise(shape) for key, shape in shapes.items()})
    write_files(tasks, 2, lambda: None)


def write_mllama_files(directory: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    tokenizer = widened(train_mllama_tokenizer(), "<|image|>", MLLAMA_VOCABULARY)
    write_mllama(directory, tokenizer, MllamaShape(image_size=vision["image_size"]))
    (directory / "model.safetensors").unlink()
    MllamaConfig(
        vision, text, image_token_index=MLLAMA_VOCABULARY, torch_dtype="bfloat16"
    ).save_pretrained(directory)


def write_nvila_files(directory: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE_TOKEN]}, replace_additional_special_tokens=False
    )
    description = NVILALiteConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        newline_token_id=tokenizer.encode("\n")[0],
        mm_projector_type="mlp_downsample_3x3_fix",
        torch_dtype="bfloat16",
    )
    directory.mkdir(parents=True)
    write_assets(directory, description, tokenizer)
    write_code(directory)


if __name__ == "__main__":
    from launch import backend

    backend.activate(cpu=True)
    write_directory(sys.argv[1], Path(sys.argv[2]))
