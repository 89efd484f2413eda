"""Where a run begins: its own last checkpoint, or the weights of another run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo import lightning as nl
from nemo.utils import logging
from nemo.utils.app_state import AppState

from models.adapter_paths import base_checkpoint, is_adapter_checkpoint
from models.checkpoint_paths import find_checkpoint, newest_checkpoint, unfinished_checkpoints


@dataclass(kw_only=True)
class StartOrResume(nl.AutoResume):
    """NeMo's AutoResume that finds the start when the run begins, not when it is described.

    So a chain of stages can be submitted before the first one has a checkpoint.

    Args:
        init_from: a checkpoint or the folder of a run; None starts from random weights.
    """

    init_from: str | None = None
    resume_if_exists: bool = True
    resume_ignore_no_checkpoint: bool = True
    resume_past_end: bool = True
    restore_config: nl.RestoreConfig | None = None

    def setup(self, trainer: Any, model: Any = None) -> None:
        """Point the trainer at the checkpoint.

        Raises:
            ValueError: `init_from` has no checkpoint of a whole model and this run has none of its
                own, or the base of its adapters is gone.
        """
        if model is not None:
            model.starts_from = self.init_from
        own = self.get_trainer_ckpt_path(model)
        if own is None and self.init_from is not None and self.restore_config is None:
            start = find_checkpoint(self.init_from)
            if is_adapter_checkpoint(start):
                raise ValueError(
                    f"init_from: {start} holds adapters only; start from their base, or export "
                    "them merged and import the result."
                )
            self.restore_config = nl.RestoreConfig(path=str(start), load_artifacts=False)
        super().setup(trainer, model)

    def _get_base_model_path_for_adapter(self, adapter_meta_path: Path, model: Any) -> Path:
        """Return the base of an adapter checkpoint, also after the runs have been moved."""
        return base_checkpoint(adapter_meta_path.parent, "resume")

    def _find_trainer_ckpt_path(self) -> Path | None:
        """Return the newest whole checkpoint of this run, whatever it is called.

        NeMo looks for names that end in "last" only: a run that was killed while that link was
        renewed would begin anew, and one cut off in its first save would refuse to begin.
        """
        if self.resume_from_directory:
            return newest_checkpoint(Path(self.resume_from_directory))
        log_dir = AppState().log_dir
        if log_dir is None:
            return None
        folder = Path(log_dir) / "checkpoints"
        newest = newest_checkpoint(folder)
        for half in unfinished_checkpoints(folder):
            instead = "the start" if newest is None else newest.name
            logging.warning(f"{half.name} was cut off while it was written; {instead} is used.")
        return newest
