"""What can be refused before a run is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from launch.recipe_paths import PATH_FIELDS

if TYPE_CHECKING:
    import nemo_run as run


def check_files(recipe: run.Partial) -> None:
    """Refuse a recipe whose checkpoint or data are not there.

    Raises:
        ValueError: no checkpoint to start from, one of another model, or missing data.
    """
    import fiddle as fdl

    from models.checkpoint_paths import find_assets, find_checkpoint

    config = fdl.build(recipe.model.config)
    init_from = getattr(recipe.resume, "init_from", None)
    if init_from is not None:
        config.describe(str(find_assets(find_checkpoint(init_from))))
    config.resolve_assets()
    data = fdl.build(recipe.data)
    data.setup("fit")
    if not getattr(data, "train_paths", True):
        raise ValueError("data.train_paths: is empty; name at least one JSON or JSONL file.")


def check_data_files(recipe: run.Partial) -> None:
    """Refuse a recipe whose data are not there; what it starts from is not looked at.

    Raises:
        ValueError: a file or folder is missing.
    """
    for name in sorted(PATH_FIELDS - {"assets", "bad_sample_file"}):
        value = getattr(recipe.data, name, None) or []
        for path in [value] if isinstance(value, str) else value:
            if "://" not in path and not Path(path).exists():
                raise ValueError(f"data.{name}: {path} does not exist.")


def run_folder(recipe: run.Partial) -> Path:
    """Return where a run keeps its logs and checkpoints."""
    return Path(recipe.log.log_dir) / recipe.log.name


def is_finished(recipe: run.Partial) -> bool:
    """Return whether the run has done all its steps and has a checkpoint of the last one."""
    from models.checkpoint_paths import checkpoint_step, newest_checkpoint
    from recipes.steps_file import STEPS_FILE, read_steps

    folder = run_folder(recipe)
    steps = read_steps(folder / STEPS_FILE)
    if not steps or steps[-1]["step"] < recipe.trainer.max_steps - 1:
        return False
    newest = newest_checkpoint(folder / "checkpoints")
    return newest is not None and (checkpoint_step(newest) or 0) >= recipe.trainer.max_steps - 1


def check_one_machine(recipe: run.Partial) -> None:
    """Refuse a recipe for several machines.

    Raises:
        ValueError: it needs a scheduler.
    """
    if recipe.trainer.num_nodes > 1:
        raise ValueError(
            f"num_nodes: {recipe.trainer.num_nodes} nodes need a scheduler; use 1 here, or name a "
            "cluster with --site."
        )
