"""One JSON line per optimizer step: what a report, a resume check or a person needs."""

import json
import math
import os
import time
import zlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from nemo.lightning import io
from nemo.utils import logging

from models.preference import METRICS
from recipes.run_folder import run_folder
from recipes.steps_file import CODE_VARIABLE, RUN_FILE, STEPS_FILE, read_steps, rewrite_rows


class StepLog(pl.Callback, io.IOMixin):
    """Writes `log/steps.jsonl` into the run's folder, from rank 0.

    After a resume, lines of steps that are run again are dropped first, so the file holds each step
    once. Fields: step, loss, learning_rate, grad_norm, consumed_samples, tokens (of the global
    batch, those of images too, without padding), seconds (of this step), time (when it ended,
    seconds since 1970), samples (a checksum of the keys of the rank's samples, to compare orders),
    skipped (true where the weights were left as they were), and in a preference run its METRICS.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the log; drop what a resumed run will do again."""
        if trainer.is_global_zero:
            self._path = run_folder(trainer) / STEPS_FILE
            self._path.parent.mkdir(parents=True, exist_ok=True)
            kept = [row for row in read_steps(self._path) if row["step"] < trainer.global_step]
            rewrite_rows(self._path, kept)
            described: dict[str, Any] = {"max_steps": trainer.max_steps}
            if code := os.environ.get(CODE_VARIABLE):
                described["code"] = code
                logging.info(f"code: nemo-vlm-recipes {code}")
            (self._path.parents[1] / RUN_FILE).write_text(json.dumps(described) + "\n", "utf-8")
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the line of the step that has just ended."""
        keys, pl_module.step_sample_keys = pl_module.step_sample_keys, []
        tokens, pl_module.step_tokens = _of_all_ranks(pl_module.step_tokens, pl_module.device), 0
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        self.log("tokens_per_second", tokens / seconds, batch_size=1)
        if self._path is None:
            return
        metrics = trainer.callback_metrics
        loss = float(metrics.get("reduced_train_loss", math.nan))
        row = {
            "step": trainer.global_step - 1,
            "loss": loss,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": _optional(metrics.get("grad_norm")),
            "consumed_samples": _optional(metrics.get("consumed_samples")),
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "time": round(time.time(), 3),
            "samples": zlib.crc32("\n".join(keys).encode("utf-8")),
        }
        row |= {name: float(metrics[name]) for name in METRICS if name in metrics}
        if pl_module.step_is_skipped:
            row |= {"grad_norm": None, "skipped": True}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _of_all_ranks(tokens: int, device: torch.device) -> int:
    """Return the sum over those ranks that have different samples."""
    total = torch.tensor(tokens, device=device)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
    return int(total)


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
