"""Batches counted as steps, so that a resumed run validates when an uninterrupted one does."""

import lightning.pytorch as pl
from nemo.lightning import io


class BatchCount(pl.Callback, io.IOMixin):
    """Sets Lightning's count of batches to the steps that are done, when training starts.

    A checkpoint is written before Lightning has counted its last batch as completed, so its own
    count is one behind after every resume, and `val_check_interval` with it. A validation that was
    due when the run was stopped is then made at once.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count; a step is one batch here."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for counts in (progress.current, progress.total):
            for name in ("ready", "started", "processed", "completed"):
                setattr(counts, name, trainer.global_step)
