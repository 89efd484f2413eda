"""The parts of a run that are the same in every family, built from rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast, get_args

import nemo_run as run
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler

from datamodules.conversation_module import ConversationDataModule
from datamodules.energon import EnergonDataModule
from datamodules.preloaded import PreloadedDataModule
from models.dora import LanguageDoRA
from models.lora import LanguageLoRA
from models.preference import PreferenceObjective
from recipes.bad_steps import BadSteps
from recipes.batch_count import BatchCount
from recipes.checkpoints import StageCheckpoint
from recipes.hang_watchdog import HangWatchdog
from recipes.part_learning_rates import PartLearningRates
from recipes.preference_log import PreferenceLog
from recipes.reference_pass import ReferencePass
from recipes.rows import LayoutRow, Precision, StageRow, check_batch, look_up
from recipes.start import StartOrResume
from recipes.step_log import StepLog
from recipes.stop_on_signal import StopOnSignal


def with_precision(layout: LayoutRow, precision: str | None) -> LayoutRow:
    """Return the layout with another precision; None leaves it.

    Raises:
        ValueError: an unknown precision.
    """
    if precision is None:
        return layout
    if precision not in get_args(Precision):
        raise ValueError(
            f"precision: {precision!r} is unknown; allowed are {', '.join(get_args(Precision))}."
        )
    return replace(layout, precision=cast(Precision, precision))


def recompute_options(layout: LayoutRow) -> dict[str, object]:
    """Return the fields of a TransformerConfig for the layout's recomputation."""
    if not layout.recompute:
        return {}
    return {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }


def precision_plugin(precision: Precision) -> run.Config:
    """Build the precision plug-in.

    Args:
        precision: "fp32", "bf16", or "fp8": Transformer Engine, delayed scaling, hybrid format,
            an amax history of 16 reduced by its maximum.
    """
    if precision == "fp32":
        return run.Config(nl.MegatronMixedPrecision, precision="32")
    plugin = run.Config(
        nl.MegatronMixedPrecision,
        precision="bf16-mixed",
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        grad_reduce_in_fp32=True,
    )
    if precision == "fp8":
        plugin.fp8 = "hybrid"
        plugin.fp8_recipe = "delayed"
        plugin.fp8_margin = 0
        plugin.fp8_amax_history_len = 16
        plugin.fp8_amax_compute_algo = "max"
    return plugin


def strategy(layout: LayoutRow) -> run.Config:
    """Build the Megatron strategy of a layout."""
    return run.Config(
        nl.MegatronStrategy,
        tensor_model_parallel_size=layout.tensor_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        context_parallel_size=1,
        sequence_parallel=layout.sequence_parallel,
        pipeline_dtype=torch.float32 if layout.precision == "fp32" else torch.bfloat16,
        gradient_as_bucket_view=True,
        ckpt_async_save=layout.async_checkpoint,
        ckpt_parallel_load=True,
        ddp=run.Config(
            DistributedDataParallelConfig,
            use_distributed_optimizer=True,
            check_for_nan_in_grad=False,  # BadSteps looks at them
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=layout.overlap_communication,
            overlap_param_gather=layout.overlap_communication,
        ),
    )


def trainer(
    stage: StageRow, layout: LayoutRow, num_nodes: int, num_gpus_per_node: int
) -> run.Config:
    """Build the trainer; one step is one global batch."""
    return run.Config(
        nl.Trainer,
        accelerator="auto",
        devices=num_gpus_per_node,
        num_nodes=num_nodes,
        max_steps=stage.max_steps,
        accumulate_grad_batches=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        log_every_n_steps=1,
        strategy=strategy(layout),
        plugins=precision_plugin(layout.precision),
        callbacks=[
            run.Config(BadSteps),
            run.Config(StepLog),
            run.Config(StopOnSignal),
            run.Config(HangWatchdog),
            run.Config(BatchCount),
        ],
    )


def optimizer(stage: StageRow, layout: LayoutRow) -> run.Config:
    """Build AdamW with warm-up and cosine decay over the whole stage."""
    return run.Config(
        PartLearningRates,
        vision_lr=stage.vision_max_lr,
        projector_lr=stage.projector_max_lr,
        config=run.Config(
            OptimizerConfig,
            optimizer="adam",
            lr=stage.max_lr,
            weight_decay=stage.weight_decay,
            adam_beta1=0.9,
            adam_beta2=stage.adam_beta2,
            adam_eps=stage.adam_eps,
            clip_grad=stage.clip_grad,
            use_distributed_optimizer=True,
            bf16=layout.precision != "fp32",
            **optimizer_state(layout),
        ),
        lr_scheduler=run.Config(
            CosineAnnealingScheduler,
            max_steps=stage.max_steps,
            warmup_steps=stage.warmup_steps,
            constant_steps=0,
            min_lr=stage.min_lr,
        ),
    )


def optimizer_state(layout: LayoutRow) -> dict[str, object]:
    """Return the fields of an OptimizerConfig for the layout's types of the optimizer's state."""
    if layout.precision == "fp32" or layout.optimizer_state == "fp32":
        return {}
    return {
        "use_precision_aware_optimizer": True,
        "exp_avg_dtype": torch.bfloat16,
        "exp_avg_sq_dtype": torch.bfloat16,
    }


def log(stage: StageRow, dir: str, name: str) -> run.Config:
    """Build the logger and the checkpoint rule: the newest ones are kept.

    Everything of a run lies in `dir/name`.
    """
    return run.Config(
        nl.NeMoLogger,
        log_dir=dir,
        name=name,
        use_datetime_version=False,
        update_logger_directory=False,
        tensorboard=run.Config(
            TensorBoardLogger, save_dir=f"{dir}/{name}", name="tensorboard", version=""
        ),
        ckpt=run.Config(
            StageCheckpoint,
            every_n_train_steps=stage.save_every_steps,
            save_last="link",
            save_top_k=stage.keep_checkpoints,
            monitor="step",
            mode="max",
            filename="{step}-{consumed_samples}",
            save_on_train_epoch_end=False,
            train_time_interval=None,
        ),
    )


def resume(init_from: str) -> run.Config:
    """Continue this run's own last checkpoint, else start from the weights of `init_from`."""
    return run.Config(StartOrResume, init_from=init_from)


_ADAPTERS: dict[str, type[LanguageLoRA]] = {"lora": LanguageLoRA, "dora": LanguageDoRA}
ADAPTER_SCHEMES = tuple(_ADAPTERS)


def adapters(scheme: str, stage: StageRow, options: Mapping[str, object]) -> run.Config:
    """Build the adapters of the language model, beside the parts that the stage trains.

    Args:
        scheme: lora or dora.
        stage: says whether vision tower and projector train, in full.
        options: rank, scale and dropout.
    """
    return run.Config(
        _ADAPTERS[scheme],
        freeze_vision_model=not stage.train_vision,
        freeze_vision_projection=not stage.train_projector,
        **options,
    )


DATA_MODULES: dict[str, type[ConversationDataModule]] = {
    "files": PreloadedDataModule,
    "shards": EnergonDataModule,
}


def data(stage: StageRow, layout: LayoutRow, assets: str, folder: str, kind: str) -> run.Config:
    """Build the data module; the user names the data.

    Rows are padded so that every rank's part of a sequence suits the matrix units: Transformer
    Engine's FP8 needs multiples of 16.

    Args:
        stage: what is trained on.
        layout: how it is spread.
        assets: checkpoint or run that has the tokenizer.
        folder: of the run.
        kind: "files" (`data.train_paths=...`) or "shards" (`data.path=...`).

    Raises:
        ValueError: an unknown kind.
    """
    ranks = layout.tensor_parallel if layout.sequence_parallel else 1
    config = run.Config(
        look_up(DATA_MODULES, "data", kind),
        assets=assets,
        seq_length=stage.seq_length,
        micro_batch_size=layout.micro_batch_size,
        global_batch_size=stage.global_batch_size,
        max_tiles=stage.max_tiles,
        max_tiles_per_row=stage.max_tiles_per_row,
        pad_to_multiple_of=(16 if layout.precision == "fp8" else 8) * ranks,
        num_workers=layout.num_workers,
        bad_sample_file=f"{folder}/log/bad_samples.jsonl",
    )
    if stage.conversation_template is not None:
        config.conversation_template = stage.conversation_template
    if kind == "shards":
        config.validation_split = None  # unless the user names one: blends have none
    return config


def finetune(
    model: run.Config,
    stage: StageRow,
    layout: LayoutRow,
    dir: str,
    name: str,
    num_nodes: int,
    num_gpus_per_node: int,
    init_from: str,
    data_kind: str,
    peft_scheme: str | None,
    adapter_options: Mapping[str, object],
) -> run.Partial:
    """Compose a run of `model` in `dir/name`, from the weights and assets of `init_from`.

    In a stage of preferences a sample is a pair, so a micro batch has half as many.

    Raises:
        ValueError: the global batch does not divide over the machines, or an unknown kind of data.
    """
    if stage.preference_beta is not None:
        layout = replace(layout, micro_batch_size=max(1, layout.micro_batch_size // 2))
    check_batch(stage, layout, num_nodes, num_gpus_per_node)
    recipe = run.Partial(
        llm.finetune,
        model=model,
        data=data(stage, layout, assets=init_from, folder=f"{dir}/{name}", kind=data_kind),
        trainer=trainer(stage, layout, num_nodes, num_gpus_per_node),
        log=log(stage, dir, name),
        resume=resume(init_from),
        optim=optimizer(stage, layout),
        tokenizer=None,
    )
    if stage.preference_beta is not None:
        _learn_preferences(recipe, stage.preference_beta, stage.save_every_steps)
    if peft_scheme in ADAPTER_SCHEMES:
        recipe.peft = adapters(peft_scheme, stage, adapter_options)
    return recipe


def _learn_preferences(recipe: run.Partial, beta: float, validate_every_steps: int) -> None:
    """Make pairs the samples, and preferring one of them the aim."""
    recipe.model.objective = run.Config(PreferenceObjective, beta=beta)
    recipe.data.preference_pairs = True
    recipe.trainer.callbacks += [run.Config(ReferencePass), run.Config(PreferenceLog)]
    # Where there are data for it.
    recipe.trainer.limit_val_batches = 1.0
    recipe.trainer.val_check_interval = validate_every_steps
