"""What the frozen reference model gives the answers of a preference batch, before it is learnt.

The reference is this same model with other weights in the parts that train: they lie beside it and
take its place for a forward pass over each global batch. So a reference works on every layout and
costs one copy of what trains; with adapters it costs next to nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo.lightning import io
from nemo.lightning.megatron_parallel import MegatronParallel, MegatronStep

from models.checkpoint_paths import find_checkpoint, is_checkpoint
from models.preference import REFERENCE_KEY, answer_log_probabilities
from recipes.reference_weights import Weights, in_place, reference_weights


class ReferencePass(pl.Callback, io.IOMixin):
    """Adds the reference's log probabilities to the micro-batches of every step.

    Args:
        reference: checkpoint, or folder of a run, whose weights are the reference; None takes those
            that the run started from. Parts that do not train are the model's own.
    """

    def __init__(self, reference: str | None = None) -> None:
        self.reference = reference
        self._checkpoint: str | None = None
        self._weights: Weights | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoint is the reference."""
        return {"checkpoint": self._checkpoint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the reference of the run that is resumed."""
        self._checkpoint = state_dict["checkpoint"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Read the reference's weights.

        Raises:
            ValueError: there is no checkpoint to read them from.
        """
        if pl_module.objective.reference_free:
            return
        start = self.reference or pl_module.starts_from
        if start is None:
            raise ValueError(
                "reference: None is not allowed for a run that starts from random weights; give a "
                "checkpoint, or set model.objective.reference_free=True."
            )
        # The run that was started from may have newer checkpoints now.
        if self._checkpoint is None or not is_checkpoint(Path(self._checkpoint)):
            self._checkpoint = str(find_checkpoint(start, "reference").resolve())
        model = trainer.strategy.megatron_parallel
        self._weights = reference_weights(model, Path(self._checkpoint))

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        """Run the reference over the step's micro-batches, in training and in validation."""
        if step.trainer.lightning_module.objective.reference_free:
            return step
        assert self._weights is not None, "a validation before training has no reference"
        batches = [next(step.data) for _ in range(get_num_microbatches())]
        with in_place(self._weights), _evaluating(step.pipeline), torch.no_grad():
            answers = _run(step, batches)
        # Stages but the last have none, and need none.
        for batch, log_probabilities in zip(batches, answers, strict=False):
            _fields(batch)[REFERENCE_KEY] = log_probabilities
        return replace(step, data=iter(batches))


def _run(step: MegatronStep, batches: Sequence[Any]) -> list[torch.Tensor]:
    """Return float32[n, 2] for every micro-batch on the last stage, and nothing on others."""
    config = step.trainer.lightning_module.config

    def forward(iterator: Iterator[Any], model: Any) -> tuple[Any, Callable[..., torch.Tensor]]:
        batch = config.data_step_fn(iterator)

        def collect(output: Any, non_loss_data: bool = True) -> torch.Tensor:
            assert non_loss_data
            losses, mask = output
            return answer_log_probabilities(losses, {**batch, "loss_mask": mask})[0]

        return config.forward_step_fn(model, batch), collect

    sampler = step.trainer.datamodule.data_sampler
    return get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=step.to_data_iterator_list(iter(batches)),
        model=step.model,
        num_microbatches=len(batches),
        seq_length=sampler.seq_len,
        micro_batch_size=sampler.micro_batch_size,
        forward_only=True,
        collect_non_loss_data=True,
    )


def _fields(batch: Any) -> dict[str, Any]:
    """Return the dictionary of a micro-batch, to which Lightning may add its numbers."""
    return batch[0] if isinstance(batch, tuple) else batch


@contextmanager
def _evaluating(model: MegatronParallel) -> Iterator[None]:
    """Switch dropout off."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
