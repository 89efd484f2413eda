"""Steps that would harm the model: a loss or gradients that are not numbers, or a spike."""

import itertools
import json
import math
import statistics
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from nemo.lightning import io
from nemo.utils import logging

from recipes.checkpoints import finish_saving
from recipes.run_folder import run_folder
from recipes.steps_file import BAD_STEPS_FILE, read_steps, rewrite_rows

ROLLED_BACK_STATUS = 76
"""Exit status of a run that goes back to its last checkpoint: the same command resumes it."""

BadStepAction = Literal["skip", "roll_back"]
_KEYS_SHOWN = 10


class BadSteps(pl.Callback, io.IOMixin):
    """Leaves out the optimizer step of a batch whose loss or gradients are not finite, or spike.

    The weights stay as they were; the step counts, and so does its batch. `log/bad_steps.jsonl` of
    the run names the samples of all ranks. With the action roll_back the run ends at the first such
    step with status 76 and resumes from its last checkpoint: a fault of the hardware is then gone
    and nothing is left out; a step that is bad again is skipped.

    (Megatron's own check, `check_for_nan_in_grad`, ends the run, which meets the same batch again.)

    Args:
        action: "skip" or "roll_back".
        spike_factor: a loss above so many times the median of the last ones is a spike; None looks
            for no spikes.
        window_steps: how many good losses the median is of; nothing is a spike before half of them.
        most_in_a_row: one more bad step than this ends the run, as it has diverged.

    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(
        self,
        action: BadStepAction = "skip",
        spike_factor: float | None = None,
        window_steps: int = 64,
        most_in_a_row: int = 10,
    ) -> None:
        if action not in get_args(BadStepAction):
            allowed = ", ".join(get_args(BadStepAction))
            raise ValueError(f"bad_steps.action: {action!r} is unknown; allowed are {allowed}.")
        if spike_factor is not None and not spike_factor > 1:
            raise ValueError(f"bad_steps.spike_factor: {spike_factor} is not more than 1.")
        for name, value in (("window_steps", window_steps), ("most_in_a_row", most_in_a_row)):
            if value < 1:
                raise ValueError(f"bad_steps.{name}: {value} is less than 1.")
        self.action, self.spike_factor = action, spike_factor
        self.window_steps, self.most_in_a_row = window_steps, most_in_a_row
        self._losses: deque[float] = deque(maxlen=window_steps)
        self._in_a_row = 0
        self._tried: set[int] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to judge as this one does."""
        return {"losses": list(self._losses), "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Judge as the run that is resumed."""
        self._losses = deque(state_dict["losses"], maxlen=self.window_steps)
        self._in_a_row = state_dict["in_a_row"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at each step between its gradients and its update."""
        self._tried = trainer.strategy.broadcast(self._clean_log(trainer))
        for optimizer in trainer.optimizers:
            _watch(optimizer, lambda loss, norm: self._refuses(trainer, pl_module, loss, norm))

    def find_fault(self, loss: float, grad_norm: float) -> str | None:
        """Say what is wrong with a step; None when nothing is.

        Args:
            loss: of the global batch.
            grad_norm: of all gradients.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the norm of the gradients is {grad_norm}"
        if self.spike_factor is None or 2 * len(self._losses) < self.window_steps:
            return None
        median = statistics.median(self._losses)
        if loss > self.spike_factor * median:
            return f"the loss is {loss:.4g}, {loss / median:.1f} times the median of the last ones"
        return None

    def _refuses(self, trainer: pl.Trainer, pl_module: Any, loss: float, grad_norm: float) -> bool:
        """Return whether the step is left out. All ranks come to the same result.

        Raises:
            SystemExit: the run goes back to its last checkpoint.
            RuntimeError: too many bad steps in a row.
        """
        loss, grad_norm = _agree(loss, grad_norm, pl_module.device)
        step, fault = trainer.global_step, self.find_fault(loss, grad_norm)
        pl_module.step_is_skipped = fault is not None
        if fault is None:
            self._losses.append(loss)
            self._in_a_row = 0
            if step in self._tried:
                logging.warning(
                    f"step {step} is good now, and was not before: a fault of the hardware? "
                    "`python -m launch doctor` looks at the nodes."
                )
            return False
        self._in_a_row += 1
        goes_back = self.action == "roll_back" and step not in self._tried
        self._write(trainer, pl_module, fault, "roll_back" if goes_back else "skip")
        if goes_back:
            finish_saving(trainer)
            raise SystemExit(ROLLED_BACK_STATUS)
        if self._in_a_row > self.most_in_a_row:
            raise RuntimeError(
                f"{self._in_a_row} bad steps in a row, the last one {step} ({fault}): the model "
                "has diverged. Start from an older checkpoint, or with a lower learning rate."
            )
        return True

    def _write(self, trainer: pl.Trainer, pl_module: Any, fault: str, action: str) -> None:
        """Name the samples of all ranks."""
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, pl_module.step_sample_keys)
        keys = list(dict.fromkeys(key for keys in of_ranks for key in keys))
        if trainer.is_global_zero:
            row = {"step": trainer.global_step, "fault": fault, "action": action, "samples": keys}
            with _log_file(trainer).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            what = "skipped" if action == "skip" else "the run goes back to its last checkpoint"
            more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
            logging.error(
                f"step {trainer.global_step}: {fault}; {what}. Samples: "
                f"{', '.join(keys[:_KEYS_SHOWN])}{more} ({BAD_STEPS_FILE})"
            )

    def _clean_log(self, trainer: pl.Trainer) -> set[int]:
        """Drop what will be judged again, and return the steps that were rolled back."""
        if not trainer.is_global_zero:
            return set()
        path = _log_file(trainer)
        rows = read_steps(path)
        tried = {row["step"] for row in rows if row["action"] == "roll_back"}
        path.parent.mkdir(parents=True, exist_ok=True)
        is_kept = (
            row["action"] == "roll_back" or row["step"] < trainer.global_step for row in rows
        )
        rewrite_rows(path, itertools.compress(rows, is_kept))
        return tried


def _watch(optimizer: Any, refuses: Callable[[float, float], bool]) -> None:
    """Ask before each update of NeMo's optimizer, with the loss and the norm of the gradients."""
    megatron = optimizer.mcore_optimizer
    step, prepare, norm = optimizer.step, megatron.prepare_grads, megatron.get_grad_norm
    seen = {"loss": math.nan, "norm": math.nan}

    def step_with_its_loss(closure: Callable[[], Any]) -> Any:
        def keep_the_loss() -> Any:
            loss = closure()
            seen["loss"] = float(loss)
            return loss

        return step(closure=keep_the_loss)

    def prepare_and_ask() -> bool:
        found_inf = prepare()
        seen["norm"] = float(norm())
        return refuses(seen["loss"], seen["norm"]) or found_inf

    optimizer.step = step_with_its_loss
    megatron.prepare_grads = prepare_and_ask
    megatron.get_grad_norm = lambda: seen["norm"]  # once is enough


def _agree(loss: float, grad_norm: float, device: torch.device) -> tuple[float, float]:
    """Return the values of the ranks that know them; not a number if it is for one of them.

    Pipeline stages but the last one have a loss of 0.
    """
    values = [math.inf if math.isnan(value) else value for value in (loss, grad_norm)]
    agreed = torch.tensor(values, device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    loss, grad_norm = (math.nan if value == math.inf else value for value in agreed.tolist())
    return loss, grad_norm


def _log_file(trainer: pl.Trainer) -> Path:
    return run_folder(trainer) / BAD_STEPS_FILE
