"""The verb train: a recipe through a NeMo-Run executor."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import backend

if TYPE_CHECKING:
    import nemo_run as run


def train(options: Namespace) -> dict[str, Any]:
    """Build the recipe, check what can be checked here, run it."""
    backend.activate()
    from launch.factory import build_recipe

    recipe = build_recipe(options.factory, options.overrides)
    if options.dryrun:
        from fiddle.printing import as_str_flattened

        for line in as_str_flattened(recipe, include_types=False).splitlines():
            if "<[unset; default:" not in line:
                print(line)
        return {"dryrun": True}
    return run_recipe(recipe)


def run_recipe(recipe: run.Partial, tail_logs: bool = True) -> dict[str, Any]:
    """Run a recipe on this machine.

    Args:
        recipe: a call that trains.
        tail_logs: print the job's log as it runs.

    Raises:
        ValueError: the request cannot work (missing data, no checkpoint to start from).
    """
    import nemo_run as run
    from torchx.specs import AppState

    from launch.executors import local_executor
    from recipes.steps_file import STEPS_FILE, read_steps

    check_request(recipe)
    folder = Path(recipe.log.log_dir) / recipe.log.name
    executor = local_executor(recipe.trainer.devices)
    with run.Experiment(f"{recipe.log.name}", executor=executor) as experiment:
        experiment.add(recipe, name=recipe.log.name, tail_logs=tail_logs)
        experiment.run(detach=False, sequential=True)
    # A job's state is final when the experiment has been left; experiment.status() forgets how
    # local jobs ended.
    failed = any(job.state is not AppState.SUCCEEDED for job in experiment.jobs)
    steps = read_steps(folder / STEPS_FILE)
    if failed:
        print(
            f"error: the job failed after {len(steps)} steps; its log is in {experiment._exp_dir}.",
            file=sys.stderr,
        )
    return {
        "run": str(folder),
        "steps": len(steps),
        "last_loss": steps[-1]["loss"] if steps else None,
        **_bad_samples(recipe),
        "failed": failed,
    }


def _bad_samples(recipe: run.Partial) -> dict[str, dict]:
    """Count the samples that were skipped, by reason, and by source and reason."""
    from datamodules.bad_samples import count_bad_samples

    path = getattr(recipe.data, "bad_sample_file", None)
    by_reason: dict[str, int] = {}
    by_source: dict[str, dict[str, int]] = {}
    if path is not None and Path(path).is_file():
        for (source, reason), count in sorted(count_bad_samples(path).items()):
            by_reason[reason] = by_reason.get(reason, 0) + count
            by_source.setdefault(source, {})[reason] = count
    return {"bad_samples": by_reason, "bad_samples_by_source": by_source}


def check_request(recipe: run.Partial) -> None:
    """Refuse before anything is started what could only fail later.

    Raises:
        ValueError: as `run_recipe`.
    """
    import fiddle as fdl

    from models.checkpoint_paths import find_assets, find_checkpoint

    if recipe.trainer.num_nodes > 1:
        raise ValueError(
            f"num_nodes: {recipe.trainer.num_nodes} nodes need a scheduler, and only the executor "
            "of this machine is there yet; use 1, or give the recipe to a NeMo-Run executor."
        )
    config = fdl.build(recipe.model.config)
    init_from = getattr(recipe.resume, "init_from", None)
    if init_from is not None:
        config.describe(str(find_assets(find_checkpoint(init_from))))
    config.resolve_assets()
    data = fdl.build(recipe.data)
    data.setup("fit")
    if not getattr(data, "train_paths", True):
        raise ValueError("data.train_paths: is empty; name at least one JSON or JSONL file.")
