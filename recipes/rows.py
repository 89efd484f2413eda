"""The two kinds of row that a recipe is made of, and the arithmetic that they must satisfy.

A `StageRow` holds what changes the experiment, a `LayoutRow` only what maps it to hardware:
changing a layout must not change the loss beyond numeric noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

Precision = Literal["fp32", "bf16", "fp8"]
OptimizerState = Literal["fp32", "bf16"]
RowT = TypeVar("RowT")


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """Convergence: data, order, batch, learning rates, what is trained."""

    train_vision: bool
    train_projector: bool
    train_language: bool
    num_samples: int
    """Samples of one epoch of the stage's blend; with the batch size, the number of steps."""

    global_batch_size: int
    seq_length: int
    max_lr: float
    """Of the language model, or of its adapters, and of the other parts unless they have one."""

    vision_max_lr: float | None = None
    projector_max_lr: float | None = None
    min_lr: float
    warmup_fraction: float
    """Part of the steps in which the learning rate rises from 0."""

    weight_decay: float
    adam_beta2: float
    adam_eps: float = 1e-8
    clip_grad: float
    """Norm to which gradients are clipped; 0 is off."""

    max_tiles: int
    """Tiles of one image, the thumbnail not counted."""

    max_tiles_per_row: int | None = None
    """Tiles of all images of a sample, or of a packed row: what memory is planned for. None where
    tiles take positions of the text, so that `seq_length` bounds them."""

    conversation_template: str | None = None
    """Of the data; None is the model's own chat template."""

    preference_beta: float | None = None
    """Of the objective, where pairs of a chosen and a rejected answer are learnt (DPO)."""

    save_every_steps: int
    keep_checkpoints: int
    starts_from: str
    """Name of the stage whose checkpoint is the start, or `assembled`."""

    @property
    def max_steps(self) -> int:
        """Optimizer steps."""
        return self.num_samples // self.global_batch_size

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up."""
        return max(1, round(self.max_steps * self.warmup_fraction))


@dataclass(frozen=True, kw_only=True)
class LayoutRow:
    """Execution: parallel degrees, micro batch, memory for compute, precision."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    sequence_parallel: bool = False
    micro_batch_size: int
    recompute: bool = False
    """Recompute every block's activations in the backward pass."""

    precision: Precision = "bf16"
    overlap_communication: bool = True
    """Reduce gradients and gather parameters while computing."""

    async_checkpoint: bool = True
    optimizer_state: OptimizerState = "fp32"
    """Of the moments. With bf16 they take 2 bytes each, and of the fp32 master weights only the 2
    bytes are stored that the bf16 weights lack. Without effect in fp32 training."""

    num_workers: int = 4
    """Data-loading processes per rank."""


def look_up(table: Mapping[str, RowT], argument: str, value: str) -> RowT:
    """Return the row of `value`.

    Raises:
        ValueError: there is none; the sentence lists the allowed values.
    """
    if value not in table:
        raise ValueError(f"{argument}: {value!r} is unknown; allowed are {', '.join(table)}.")
    return table[value]


def look_up_stage(
    table: Mapping[tuple[str, str], StageRow], stage: str, peft_scheme: str | None
) -> StageRow:
    """Return the row of a stage and a scheme; None is "none".

    Raises:
        ValueError: an unknown stage, or a scheme that it does not have.
    """
    look_up({one: scheme for one, scheme in table}, "stage", stage)
    schemes = {scheme: row for (one, scheme), row in table.items() if one == stage}
    return look_up(schemes, "peft_scheme", peft_scheme or "none")


def check_batch(stage: StageRow, layout: LayoutRow, num_nodes: int, num_gpus_per_node: int) -> None:
    """Check that the global batch divides over the machines.

    Raises:
        ValueError: it does not.
    """
    world = num_nodes * num_gpus_per_node
    model_parallel = layout.tensor_parallel * layout.pipeline_parallel
    if world < 1 or world % model_parallel:
        raise ValueError(
            f"num_nodes, num_gpus_per_node: {num_nodes} x {num_gpus_per_node} GPUs do not divide "
            f"by tensor x pipeline parallelism = {model_parallel}."
        )
    data_parallel = world // model_parallel
    if stage.global_batch_size % (layout.micro_batch_size * data_parallel):
        raise ValueError(
            f"num_nodes, num_gpus_per_node: with {data_parallel} data-parallel ranks a micro batch "
            f"of {layout.micro_batch_size} does not divide the global batch of "
            f"{stage.global_batch_size}; use another number of GPUs."
        )
