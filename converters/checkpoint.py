"""Writing and reading a NeMo checkpoint of NVILA on one process, without a trainer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from nemo import lightning as nl
from nemo.lightning.io.pl import TrainerContext
from torch import Tensor

from models.checkpoint_paths import find_assets
from models.assets import ASSETS_FOLDER
from models.nvila.config import NvilaConfig, config_from_hf, read_assets_config
from models.nvila.model import MCoreNvilaModel, NvilaModel

_PREFIX = "module."
"""NeMo's checkpoints name a parameter by its place below the Lightning module."""

_EXTRA_STATE = "_extra_state"
"""Transformer Engine's FP8 statistics: no Hugging Face tensor stands behind them."""


@contextmanager
def single_process() -> Iterator[None]:
    """Give this process a process group and model-parallel groups of its own."""
    if dist.is_initialized():  # inside a test's or a trainer's group of one
        yield
        return
    dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(minutes=30)
    )
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def build_model(config: NvilaConfig, dtype: torch.dtype) -> MCoreNvilaModel:
    """Build the model with uninitialised weights in host memory."""
    config.params_dtype = dtype
    config.perform_initialization = False
    config.use_cpu_initialization = True
    return config.configure_model().to(dtype=dtype)


def model_tensors(model: MCoreNvilaModel) -> dict[str, Tensor]:
    """Return the model's tensors by name, without Transformer Engine's extra state."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith(_EXTRA_STATE)
    }


def write_checkpoint(
    folder: Path, config: NvilaConfig, tensors: dict[str, Tensor], assets: Path
) -> None:
    """Write `weights/` and `context/` as NeMo does.

    Args:
        folder: an empty folder.
        config: sizes.
        tensors: every Megatron-Core tensor by name; shapes and names must be the model's own.
        assets: copied to `context/assets`.
    """
    dtype = tensors["language_model.embedding.word_embeddings.weight"].dtype
    with single_process():
        module = build_model(config, dtype)
        expected = model_tensors(module)
        assert expected.keys() == tensors.keys(), expected.keys() ^ tensors.keys()
        module.load_state_dict(tensors, strict=False)
        weights = folder / "weights"
        weights.mkdir()
        dist_checkpointing.save(
            {"sharded_state_dict": module.sharded_state_dict(prefix=_PREFIX)},
            str(weights),
            content_metadata={},
        )
    write_context(folder, config, assets)


def write_context(folder: Path, config: NvilaConfig, assets: Path) -> None:
    """Write `context/`: NeMo's description of the model, and the assets."""
    config.assets = str(assets)
    config.__io__.assets = str(assets)
    model = NvilaModel(config)
    trainer = nl.Trainer(accelerator="cpu", devices=1, strategy=nl.MegatronStrategy(), logger=False)
    context = folder / "context"
    TrainerContext(model=model, trainer=trainer, extra={}).io_dump(context, yaml_attrs=["model"])
    if not (context / ASSETS_FOLDER).is_dir():
        shutil.copytree(assets, context / ASSETS_FOLDER)


def read_checkpoint(checkpoint: str | Path) -> tuple[NvilaConfig, dict[str, Tensor]]:
    """Read all weights of a checkpoint, written under any parallel layout.

    Returns:
        The configuration and the Megatron-Core tensors by name, in the dtype of the checkpoint.

    Raises:
        ValueError: the folder is no finished checkpoint of this family.
    """
    with single_process():
        config, module = load_model(checkpoint)
        return config, model_tensors(module)


def load_model(
    checkpoint: str | Path, dtype: torch.dtype | None = None
) -> tuple[NvilaConfig, MCoreNvilaModel]:
    """Load a checkpoint into a model on this process (inside `single_process`).

    Args:
        checkpoint: folder with `weights` and `context`.
        dtype: of the loaded parameters; None keeps the checkpoint's.

    Raises:
        ValueError: the folder is no finished checkpoint of this family.
    """
    weights = _weights_of(checkpoint)
    config = config_from_hf(read_assets_config(find_assets(checkpoint)))
    module = build_model(config, dtype or _stored_dtype(weights))
    sharded = module.sharded_state_dict(
        prefix=_PREFIX, metadata=dist_checkpointing.load_content_metadata(str(weights)) or {}
    )
    sharded = {key: value for key, value in sharded.items() if not key.endswith(_EXTRA_STATE)}
    loaded = dist_checkpointing.load(
        {"state_dict": sharded}, str(weights), validate_access_integrity=False
    )
    state = {name.removeprefix(_PREFIX): value for name, value in loaded["state_dict"].items()}
    module.load_state_dict(state, strict=False)
    return config, module


def _weights_of(checkpoint: str | Path) -> Path:
    weights = Path(checkpoint) / "weights"
    if not (weights / "metadata.json").is_file():
        raise ValueError(
            f"ckpt: {checkpoint} is not a finished NeMo checkpoint (weights/metadata.json is "
            "missing); give the folder that holds weights and context."
        )
    return weights


def _stored_dtype(weights: Path) -> torch.dtype:
    metadata = dist_checkpointing.load_tensors_metadata(str(weights))
    key = f"{_PREFIX}language_model.embedding.word_embeddings.weight"
    if key not in metadata:
        raise ValueError(
            f"ckpt: {weights.parent} has no {key}; it is a checkpoint of another model family."
        )
    return metadata[key].dtype
