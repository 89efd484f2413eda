"""Where a running training keeps its logs."""

from pathlib import Path

import lightning.pytorch as pl
from nemo.utils.app_state import AppState


def run_folder(trainer: pl.Trainer) -> Path:
    """Return the run's folder; NeMo keeps it in a global."""
    return Path(AppState().log_dir or trainer.default_root_dir)
