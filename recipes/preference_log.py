"""What a preference run writes of its losses and margins, in training and in validation."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from nemo.lightning import io
from nemo.lightning.megatron_parallel import MegatronStep

from models.preference import METRICS
from recipes.run_folder import run_folder
from recipes.steps_file import VALIDATION_FILE, read_steps, rewrite_rows


class PreferenceLog(pl.Callback, io.IOMixin):
    """Logs `METRICS` of every step, and of every validation in `log/validation.jsonl` of the run.

    Fields there: step (the steps done before it), pairs, and METRICS.
    """

    def __init__(self) -> None:
        self._validated: torch.Tensor | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._validated = torch.zeros(len(METRICS) + 1, device=pl_module.device)

    def on_megatron_step_end(self, step: MegatronStep) -> None:
        """Log a training step; count a validation step."""
        module = step.trainer.lightning_module
        if module.training:
            sums = _from_last_stage(module.training_loss_reduction.sums, module.device)
            for name, value in _means(sums).items():
                module.log(name, value, batch_size=1)
        elif self._validated is not None:
            self._validated += _from_last_stage(
                module.validation_loss_reduction.sums, module.device
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line of the validation that has just ended."""
        assert self._validated is not None
        means = _means(self._validated)
        if trainer.is_global_zero:
            pairs = int(self._validated[-1])
            _write(run_folder(trainer) / VALIDATION_FILE, trainer.global_step, pairs, means)
            for logger in trainer.loggers:
                named = {f"val_{name}": value for name, value in means.items()}
                logger.log_metrics(named, step=trainer.global_step)
        self._validated = None


def _write(path: Path, step: int, pairs: int, means: dict[str, float]) -> None:
    """Append a line; a resumed run does some validations again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = [row for row in read_steps(path) if row["step"] < step]
    rewrite_rows(path, [*earlier, {"step": step, "pairs": pairs, **means}])


def _means(sums: torch.Tensor) -> dict[str, float]:
    *totals, pairs = sums.tolist()
    return {name: total / max(pairs, 1) for name, total in zip(METRICS, totals, strict=True)}


def _from_last_stage(sums: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Return what the last pipeline stage knows, on all stages."""
    if not parallel_state.is_pipeline_last_stage():
        sums = torch.zeros(len(METRICS) + 1, device=device)
    assert sums is not None
    torch.distributed.broadcast(
        sums,
        parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return sums
