"""Batches counted as steps, so that a resumed run validates when an uninterrupted one does."""

import lightning.pytorch as pl
from nemo.lightning import io


class BatchCount(pl.Callback, io.IOMixin):
    """Counts batches on from the steps that are done, when training starts.

    A checkpoint is written before Lightning has counted its last batch as completed, so its own
    count is one behind after every resume, and `val_check_interval` with it; and the first
    validation after a resume would leave out what the last one before had counted. A validation
    that was cut off is not made up for.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count; a step is one batch here, and an epoch has no end."""
        loop = trainer.fit_loop.epoch_loop
        # Batches of this process are counted from 0 then, those of the run from the steps done.
        loop.restarting = False
        for name in ("ready", "started", "processed", "completed"):
            setattr(loop.batch_progress.total, name, trainer.global_step)
        trainer.check_val_every_n_epoch = None  # so that the run's batches are what counts
