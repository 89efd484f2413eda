import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    """Code of models is cached apart from the user's, and by each worker apart from the others.

    transformers reads this when it is imported, and Python keeps the first folder that it imported
    such code from.
    """
    config.modules_cache = tempfile.mkdtemp(prefix="modules_")
    os.environ["HF_MODULES_CACHE"] = config.modules_cache


def pytest_unconfigure(config):
    shutil.rmtree(config.modules_cache, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


# The Hugging Face fixtures are built from the quickstart's parents: real classes, random weights.


@pytest.fixture(scope="session")
def nano_tokenizer():
    """A byte-level BPE tokenizer with ChatML and ``<image>``."""
    from launch.quickstart.parents import train_tokenizer

    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<image>"]}, replace_additional_special_tokens=False
    )
    return tokenizer


@pytest.fixture(scope="session")
def make_nano_config(nano_tokenizer):
    """Makes configurations of a nano model: 56 px tiles of 4x4 patches, 3 vision blocks."""
    from models.hf_code.configuration_nvila_lite import NVILALiteConfig

    def make(projector="mlp_downsample_2x2_fix", tied=True, **changes):
        text = {
            "vocab_size": len(nano_tokenizer),
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": tied,
        }
        vision = {
            "image_size": 56,
            "patch_size": 14,
            "hidden_size": 48,
            "num_attention_heads": 3,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
        }
        return NVILALiteConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=nano_tokenizer.convert_tokens_to_ids("<image>"),
            newline_token_id=nano_tokenizer.encode("\n")[0],
            mm_projector_type=projector,
            **changes,
        )

    return make


@pytest.fixture(scope="session")
def make_nano_model(make_nano_config):
    """Makes nano models with large random weights, so that every part moves the logits."""
    from models.hf_code.modeling_nvila_lite import NVILALiteForConditionalGeneration

    def make(projector="mlp_downsample_2x2_fix", tied=True, seed=0, **changes):
        model = NVILALiteForConditionalGeneration(make_nano_config(projector, tied, **changes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(0.0, 0.2, generator=generator)
                if parameter.ndim == 1 and name.endswith("weight"):
                    parameter.add_(1.0)  # the gain of a norm
        return model.eval()

    return make


@pytest.fixture(scope="session")
def nano_processor(make_nano_config, nano_tokenizer):
    """The processor that belongs to ``make_nano_config()``."""
    from converters.hf_directory import make_image_processor
    from models.hf_code.processing_nvila_lite import NVILALiteProcessor

    image_processor = make_image_processor(make_nano_config())
    return NVILALiteProcessor(image_processor, nano_tokenizer, max_tiles=12, downsample=2)


@pytest.fixture(scope="session")
def write_nano_directory(make_nano_model, nano_tokenizer):
    """Writes a directory as ``export`` does."""
    from converters.hf_directory import write_assets, write_code

    def write(directory: Path, **options):
        model = make_nano_model(**options)
        directory.mkdir(parents=True)
        model.save_pretrained(directory)
        write_code(directory)
        write_assets(directory, model.config, nano_tokenizer)
        return model

    return write


@pytest.fixture(scope="session")
def nemo():
    """NeMo and Megatron-Core in this process, on the CPU backend.

    Importing them costs half a minute, so the tests that need them share this process.
    """
    from launch import backend

    backend.activate(cpu=True)
    import nemo.collections.llm
    import nemo.lightning

    return nemo


@pytest.fixture(scope="session")
def single_process(nemo):
    """Process groups of one rank for tests that run a Megatron-Core model."""
    from converters.checkpoint import single_process as groups

    with groups():
        yield


@dataclass(frozen=True)
class ProjectRoot:
    """Where the code is, and the environment of a process that shall find it."""

    path: Path
    environment: dict[str, str]


@pytest.fixture(scope="session")
def project_root(nemo):
    """The repository, for processes of their own on the same backend as this one."""
    from launch import backend

    environment = {**os.environ, **backend.child_environment(), "OMP_NUM_THREADS": "1"}
    paths = [environment.get("PYTHONPATH", ""), str(ROOT)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return ProjectRoot(ROOT, environment)
