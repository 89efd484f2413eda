"""When checkpoints are written: NeMo's rule, and always one at the end."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from nemo import lightning as nl
from nemo.utils.callbacks.dist_ckpt_io import AsyncFinalizableCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from models.checkpoint_paths import newest_checkpoint
from recipes.checkpoint_helper import start_checkpoint_helper


class StageCheckpoint(nl.ModelCheckpoint):
    """NeMo's ModelCheckpoint that never ends a run without a checkpoint of its last step.

    The stock class leaves it out when validation would be due at that step but is switched off, and
    the next stage then starts from an older one or finds none.
    """

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save the last step unless it has been saved."""
        if self._last_global_step_saved != trainer.global_step:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        super().on_train_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        start_checkpoint_helper()
        try:
            super()._save_checkpoint(trainer, filepath)
        except (OSError, CheckpointException) as error:  # PyTorch: "unexpected pos 704 vs 598"
            assert self.dirpath is not None
            free, needed = _room(Path(self.dirpath))
            if free < needed:
                problem = f"{os.strerror(errno.ENOSPC)}: {free:,} bytes are free; a checkpoint had"
                raise OSError(errno.ENOSPC, f"{problem} {needed:,}", str(filepath)) from error
            raise


def finish_saving(trainer: pl.Trainer) -> None:
    """Wait for the checkpoint that is being written in the background, if there is one."""
    checkpoint_io = trainer.strategy.checkpoint_io
    if isinstance(checkpoint_io, AsyncFinalizableCheckpointIO):
        checkpoint_io.maybe_finalize_save_checkpoint(blocking=True)


def _room(folder: Path) -> tuple[int, int]:
    """Return the free bytes, and those of the newest whole checkpoint (0 where there is none)."""
    newest = newest_checkpoint(folder)
    files = [] if newest is None else [path for path in newest.rglob("*") if path.is_file()]
    return shutil.disk_usage(folder).free, sum(path.stat().st_size for path in files)
