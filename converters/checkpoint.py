"""A NeMo checkpoint of any family as a model on one process, without a trainer; and its context."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import MegatronModule
from nemo import lightning as nl
from nemo.lightning.io.pl import TrainerContext
from torch import Tensor

from converters.families import family_of
from converters.finished import open_checkpoint, weights_of
from converters.mapping import refuse_other_shapes
from converters.nemo_weights import PREFIX, open_weights
from models.adapter_paths import base_checkpoint, is_adapter_checkpoint
from models.assets import ASSETS_FOLDER
from models.family_config import FamilyConfig

_EXTRA_STATE = "_extra_state"
"""Transformer Engine's FP8 statistics: no Hugging Face tensor stands behind them."""

_EMBEDDING = "language_model.embedding.word_embeddings.weight"
"""The one tensor that every family has; the others share its dtype."""


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


def build_model(config: FamilyConfig, dtype: torch.dtype) -> MegatronModule:
    """Build the model with uninitialised weights in host memory."""
    config.params_dtype = dtype
    config.perform_initialization = False
    config.use_cpu_initialization = True
    return config.configure_model().to(dtype=dtype)


def model_tensors(model: MegatronModule) -> dict[str, Tensor]:
    """Return the model's tensors by name, without Transformer Engine's extra state."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith(_EXTRA_STATE)
    }


def write_context(folder: Path, config: FamilyConfig, assets: Path) -> None:
    """Write `context/`: NeMo's description of the model, and the assets."""
    config.assets = str(assets)
    config.__io__.assets = str(assets)
    model = family_of(assets, "assets").lightning_class(config)
    trainer = nl.Trainer(accelerator="cpu", devices=1, strategy=nl.MegatronStrategy(), logger=False)
    context = folder / "context"
    TrainerContext(model=model, trainer=trainer, extra={}).io_dump(context, yaml_attrs=["model"])
    if not (context / ASSETS_FOLDER).is_dir():
        shutil.copytree(assets, context / ASSETS_FOLDER)


def read_checkpoint(checkpoint: str | Path) -> tuple[FamilyConfig, dict[str, Tensor]]:
    """Read all weights of a checkpoint, written under any parallel layout.

    Returns:
        The configuration and the Megatron-Core tensors by name, in the dtype of the checkpoint.

    Raises:
        ValueError: the folder is no finished checkpoint, or its weights and assets differ.
    """
    with single_process():
        config, module = load_model(checkpoint)
        return config, model_tensors(module)


def load_model(
    checkpoint: str | Path, dtype: torch.dtype | None = None
) -> tuple[FamilyConfig, MegatronModule]:
    """Load a checkpoint into a model on this process (inside `single_process`).

    Args:
        checkpoint: folder with `weights` and `context`; adapters are merged into their base.
        dtype: of the loaded parameters; None keeps the checkpoint's.

    Raises:
        ValueError: the folder is no finished checkpoint, or its weights and assets differ.
    """
    family, assets = open_checkpoint(checkpoint)
    if is_adapter_checkpoint(checkpoint):
        return _load_merged(checkpoint, family.describe(assets), dtype)
    weights = weights_of(checkpoint)
    config = family.describe(assets)
    module = build_model(config, dtype or stored_dtype(checkpoint))
    sharded = module.sharded_state_dict(
        prefix=PREFIX, metadata=dist_checkpointing.load_content_metadata(str(weights)) or {}
    )
    sharded = {key: value for key, value in sharded.items() if not key.endswith(_EXTRA_STATE)}
    _check_weights_fit(weights, sharded)
    loaded = dist_checkpointing.load(
        {"state_dict": sharded}, str(weights), validate_access_integrity=False
    )
    state = {name.removeprefix(PREFIX): value for name, value in loaded["state_dict"].items()}
    module.load_state_dict(state, strict=False)
    return config, module


def _load_merged(
    checkpoint: str | Path, config: FamilyConfig, dtype: torch.dtype | None
) -> tuple[FamilyConfig, MegatronModule]:
    """Load a LoRA checkpoint as a model; its values are those of the base's dtype in any case."""
    module = build_model(config, dtype or stored_dtype(base_checkpoint(checkpoint)))
    expected = model_tensors(module)
    found = open_weights(checkpoint, expected).tensors
    refuse_other_shapes(
        {name: tuple(tensor.shape) for name, tensor in expected.items()},
        {name: tensor.shape for name, tensor in found.items()},
        f"ckpt: the base of {checkpoint} does not fit its context/assets/config.json",
    )
    state = {name: tensor.whole() for name, tensor in found.items()}
    module.load_state_dict(state, strict=False)
    return config, module


def stored_dtype(checkpoint: str | Path) -> torch.dtype:
    """Return the dtype of a checkpoint's weights.

    Raises:
        ValueError: it holds no model of a known family.
    """
    weights = weights_of(checkpoint)
    metadata = dist_checkpointing.load_tensors_metadata(str(weights))
    key = f"{PREFIX}{_EMBEDDING}"
    if key not in metadata:
        raise ValueError(
            f"ckpt: {weights.parent} has no {key}; it is a checkpoint of another model family."
        )
    return metadata[key].dtype


def _check_weights_fit(weights: Path, sharded: Mapping[str, Any]) -> None:
    """Compare the names and shapes on disk with the model that the assets describe."""
    wanted = dict(sharded)
    apply_factories(wanted)  # a gated MLP's two halves are saved as two tensors under one name
    stored = {
        name: tuple(tensor.global_shape)
        for name, tensor in dist_checkpointing.load_tensors_metadata(str(weights)).items()
        if name.startswith(PREFIX) and not name.endswith(_EXTRA_STATE)
    }
    refuse_other_shapes(
        {
            tensor.key: tuple(tensor.global_shape)
            for tensor in nested_values(wanted)
            if isinstance(tensor, ShardedTensor)
        },
        stored,
        f"ckpt: the weights of {weights.parent} do not fit its context/assets/config.json",
    )
