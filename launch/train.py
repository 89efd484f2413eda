"""The verb train: a recipe through a NeMo-Run executor."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import backend
from launch.requests import check_files, check_one_machine, is_finished, run_folder
from launch.site import LOCAL, Site, read_site

if TYPE_CHECKING:
    import nemo_run as run


def train(options: Namespace) -> dict[str, Any]:
    """Build the recipe, check what can be checked here, and run it or submit it."""
    site = LOCAL if options.site is None else read_site(options.site)
    if options.hours_per_job is not None:
        site = site.with_hours_per_job(options.hours_per_job)
    backend.activate()
    from launch.factory import build_recipe, build_stages
    from launch.site_rules import apply_site

    if options.stages is None:
        recipes = [build_recipe(options.factory, options.overrides)]
    else:
        recipes = build_stages(options.factory, options.stages, options.overrides)
    for recipe in recipes:
        apply_site(recipe, site)
    if site.scheduler != "local":
        from launch.submit import submit

        return submit(recipes, site, options.allow_dirty, options.dryrun)
    if options.dryrun:
        for recipe in recipes:
            _print_recipe(recipe)
        return {"dryrun": True}
    return _run_all(recipes, site)


def _print_recipe(recipe: run.Partial) -> None:
    from fiddle.printing import as_str_flattened

    for line in as_str_flattened(recipe, include_types=False).splitlines():
        if "<[unset; default:" not in line:
            print(line)


def _run_all(recipes: list[run.Partial], site: Site) -> dict[str, Any]:
    """Run recipes here one after the other; report on the last one that ran."""
    done: dict[str, Any] = {}
    for recipe in recipes:
        if len(recipes) > 1 and is_finished(recipe):
            print(f"{recipe.log.name}: has all its {recipe.trainer.max_steps} steps.")
            continue
        done = run_recipe(recipe, site=site)
        if done["failed"]:
            break
    return done


def run_recipe(recipe: run.Partial, tail_logs: bool = True, site: Site = LOCAL) -> dict[str, Any]:
    """Run a recipe on this machine.

    Args:
        recipe: a call that trains.
        tail_logs: print the job's log as it runs.
        site: of the scheduler local.

    Raises:
        ValueError: the request cannot work (missing data, no checkpoint to start from).
    """
    import nemo_run as run
    from torchx.specs import AppState

    from launch.executors.local import local_executor
    from recipes.steps_file import STEPS_FILE, read_steps

    check_one_machine(recipe)
    check_files(recipe)
    folder = run_folder(recipe)
    executor = local_executor(recipe.trainer.devices, site)
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
