import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def mllama_tokenizer():
    """A byte-level BPE tokenizer with Llama's special tokens, the image token last."""
    from launch.quickstart.mllama_parent import train_mllama_tokenizer

    tokenizer = train_mllama_tokenizer()
    # As published: `generate` of MLlama refuses the token types that the class adds by default.
    names = ["input_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names = names
    return tokenizer


@pytest.fixture(scope="session")
def write_nano_mllama(mllama_tokenizer):
    """Writes MLlama directories with large random weights, so that every part moves the logits.

    transformers initialises the gates of the cross-attention to zero, which would hide all of the
    vision side: here they are about one.
    """
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    from launch.quickstart.mllama_parent import MllamaShape, write_mllama

    def write(directory: Path, dtype=torch.float32, in_memory_names=False, seed=0, **shape):
        write_mllama(directory, mllama_tokenizer, MllamaShape(**NANO | shape))
        model = MllamaForConditionalGeneration(MllamaConfig.from_pretrained(directory))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(0.0, 0.2, generator=generator)
                is_gain = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
                if is_gain or "gate_" in name or name.endswith("gate"):
                    parameter.add_(1.0)
        model = model.to(dtype).eval()
        model.save_pretrained(directory)
        if in_memory_names:
            state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        return model

    return write


NANO = {
    "vision_width": 48,
    "vision_mlp_width": 80,
    "vision_layers": 4,
    "global_layers": 2,
    "tapped_layers": (1, 2),
    "text_width": 64,
    "text_mlp_width": 96,
    "text_layers": 5,
    "cross_layers": (1, 3),
}


@pytest.fixture
def change_weights():
    """Changes the tensors of a directory in place by a function of their dictionary."""

    def change(directory: Path, function):
        path = directory / "model.safetensors"
        tensors = load_file(path)
        tensors = function(tensors) or tensors
        save_file(tensors, path, metadata={"format": "pt"})

    return change


@pytest.fixture
def change_json():
    """Changes a JSON file in place by a function of its content."""

    def change(path: Path, function):
        content = json.loads(path.read_text(encoding="utf-8"))
        function(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return change


@pytest.fixture(scope="session")
def quickstart_sources(nemo, tmp_path_factory):
    """A Hugging Face directory of each family; one has its layers stacked, and tied embeddings."""
    from converters.assemble import assemble
    from converters.export_hf import export_checkpoint
    from launch.quickstart.llava_parent import train_llava_tokenizer, write_llava
    from launch.quickstart.mllama_parent import train_mllama_tokenizer, write_mllama
    from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

    folder = tmp_path_factory.mktemp("sources")
    write_siglip(folder / "siglip")
    write_qwen2(folder / "qwen2", train_tokenizer())
    assemble(folder / "qwen2", folder / "siglip", folder / "assembled")
    export_checkpoint(folder / "assembled", folder / "nvila")
    write_mllama(folder / "mllama", train_mllama_tokenizer())
    write_llava(folder / "llava", train_llava_tokenizer())
    return folder


@pytest.fixture(scope="session", params=["nvila", "mllama", "llava"])
def family(request):
    return request.param


@pytest.fixture(scope="session")
def imported(quickstart_sources, family, single_process, tmp_path_factory):
    """(source, checkpoint, tensors as Megatron-Core names them, made in memory)."""
    from converters.families import family_named
    from converters.finished import open_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.mapping import fuse_tensors

    checkpoint = tmp_path_factory.mktemp("imported") / family
    import_checkpoint(family, quickstart_sources / family, checkpoint)
    _, assets = open_checkpoint(checkpoint)
    loaded = family_named(family)
    weights = load_file(quickstart_sources / family / "model.safetensors")
    weights.pop("llm.lm_head.weight", None)
    tensors = fuse_tensors(loaded.table(assets), weights)
    return quickstart_sources / family, checkpoint, tensors


@pytest.fixture(scope="session")
def read_metadata():
    """Reads the description of a folder of weights."""
    return lambda weights: pickle.loads((weights / ".metadata").read_bytes())
