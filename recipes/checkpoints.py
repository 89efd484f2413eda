"""When checkpoints are written: NeMo's rule, and always one at the end."""

from typing import Any

import lightning.pytorch as pl
from nemo import lightning as nl

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
        super()._save_checkpoint(trainer, filepath)
