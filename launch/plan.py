"""The verb plan: whether a recipe fits its GPUs, before a job waits in a queue."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from launch import backend

if TYPE_CHECKING:
    import nemo_run as run

    from launch.memory_count import Layout

GPUS = {
    "h100": 80,
    "h200": 139,
    "a100": 80,
    "a100_40gb": 40,
    "l40s": 48,
    "rtx4090": 24,
}
"""Memory in GiB."""


def plan(options: Namespace) -> dict[str, Any]:
    """Count the memory of a recipe on its fullest GPU, and say whether it fits.

    Raises:
        ValueError: there are no assets to take the vocabulary's size from.
    """
    backend.activate(cpu=True)
    import fiddle as fdl

    from converters.checkpoint import single_process
    from converters.structure import empty_model
    from launch.factory import build_recipe
    from launch.memory_count import adapter_weights, count_memory, count_weights

    recipe = build_recipe(options.factory, options.overrides)
    if options.nodes is not None:
        recipe.trainer.num_nodes = options.nodes
    config = fdl.build(recipe.model.config)
    _set_vocabulary(config, options.vocabulary)
    layout = _layout(recipe, config)
    with single_process():
        model = empty_model(config, config.language_transformer_config.params_dtype)
    adapters = 0
    if getattr(recipe, "peft", None) is not None:
        peft = fdl.build(recipe.peft)
        settings = peft.settings()
        adapters = adapter_weights(model, settings.adapts, settings.dim, settings.kind == "dora")
        peft.freeze_model(model)
    weights = count_weights(model, layout, adapters)
    memory = count_memory(config, weights, layout)
    fits = memory.total <= GPUS[options.gpu] * 2**30
    return {
        "failed": not fits,
        "weights": weights.all,
        "trained_weights": weights.trained,
        **{f"{name}_gib": round(count / 2**30, 2) for name, count in memory.rows()},
        "total_gib": round(memory.total / 2**30, 2),
        "verdict": f"{'fits' if fits else 'does not fit'} {options.gpu} ({GPUS[options.gpu]} GiB)",
    }


def _set_vocabulary(config: Any, vocabulary: int | None) -> None:
    """Take the vocabulary's size from the assets, or from the user.

    Raises:
        ValueError: neither has it.
    """
    from models.checkpoint_paths import find_assets

    if vocabulary is not None:
        config.assets = None
        config.language_transformer_config.vocab_size = vocabulary
        config.image_token_id = 0
        return
    try:
        find_assets(config.assets)
    except ValueError as error:
        raise ValueError(
            f"vocabulary: {config.assets} has no checkpoint yet, so the number of tokens is not "
            "known; give --vocabulary, or init_from= in the factory."
        ) from error


def _images(config: Any, data: Any) -> int:
    """Return how many tiles a row can have."""
    from models.hf_code.configuration_neva_llava import PROJECTORS

    projector = getattr(config, "mm_projector_type", None)
    if projector is None:  # of the cross-attention, which takes no positions: one image
        return data.max_tiles
    vision = config.vision_transformer_config
    side = vision.image_size // vision.patch_size
    slots = (-(-side // PROJECTORS[projector])) ** 2
    return max(1, data.seq_length // slots)


def _layout(recipe: run.Partial, config: Any) -> Layout:
    from launch.memory_count import Layout

    strategy, data, optimizer = recipe.trainer.strategy, recipe.data, recipe.optim.config
    tensor = strategy.tensor_model_parallel_size
    pipeline = strategy.pipeline_model_parallel_size
    ranks = recipe.trainer.devices * recipe.trainer.num_nodes
    if ranks % (tensor * pipeline):
        raise ValueError(
            f"nodes: {ranks} GPUs do not divide by tensor x pipeline parallelism = "
            f"{tensor * pipeline}."
        )
    pairs = 2 if data.preference_pairs else 1
    rows = data.micro_batch_size * pairs
    is_fp32 = recipe.trainer.plugins.precision == "32"
    has_reference = recipe.model.objective is not None and not recipe.model.objective.reference_free
    data_parallel = ranks // (tensor * pipeline)
    if data.global_batch_size % (data.micro_batch_size * data_parallel):
        raise ValueError(
            f"nodes: with {data_parallel} data-parallel ranks a micro batch of "
            f"{data.micro_batch_size} does not divide the global batch of "
            f"{data.global_batch_size}; use another number of GPUs."
        )
    return Layout(
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        sequence_parallel=strategy.sequence_parallel,
        data_parallel=data_parallel,
        micro_batches=data.global_batch_size // (data.micro_batch_size * data_parallel),
        rows=rows,
        positions=data.seq_length,
        images=rows * (data.max_tiles_per_row or _images(config, data)),
        recompute=config.language_transformer_config.recompute_granularity == "full",
        weight_bytes=4 if is_fp32 else 2,
        optimizer_bytes=6 if optimizer.use_precision_aware_optimizer else 8 if is_fp32 else 12,
        has_reference=has_reference,
    )
