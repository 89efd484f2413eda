"""Recipes as jobs of a site's scheduler, one after the other."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nemo_run as run
from torchx.specs import AppState

from launch.attempts import attempts_file, bad_nodes
from launch.code_version import PROJECT_ROOT, CodeVersion, find_code_version
from launch.executors.job_request import JobRequest
from launch.executors.schedulers import SCHEDULERS
from launch.job_script import REPLACED
from launch.recipe_paths import settle_paths
from launch.requests import check_data_files, check_files, is_finished, run_folder
from launch.site import Site


def submit(
    recipes: Sequence[run.Partial], site: Site, allow_dirty: bool = False, dryrun: bool = False
) -> dict[str, Any]:
    """Hand recipes to the scheduler of a site.

    Each job starts when the one before has ended well. Slurm is left alone with them, DGX Cloud and
    SkyPilot with a single one; else this process waits. A recipe whose run has all its steps is
    left out.

    Args:
        recipes: calls that train, in their order.
        site: of any scheduler but local.
        allow_dirty: ship uncommitted changes too.
        dryrun: print the jobs' scripts or requests and submit nothing.

    Returns:
        The numbers of the jobs and the folders of the runs by their names, what was finished
        before, and where scripts and logs are.

    Raises:
        ValueError: the request cannot work: uncommitted changes, paths that a job would not see,
            missing data, more GPUs than a node has.
    """
    code = find_code_version(allow_dirty)
    for recipe in recipes:
        settle_paths(recipe, site, Path.cwd())
    todo, finished = _find_what_is_to_do(recipes, site)
    runs = {recipe.log.name: str(run_folder(recipe)) for recipe in recipes}
    done: dict[str, Any] = {"code": str(code), "runs": runs, "finished": finished}
    if not todo:
        return done
    site = _without_bad_nodes(site, todo)
    scheduler = SCHEDULERS[site.scheduler]
    # NeMo-Run would start a stage although the one before has failed: one at a time.
    batches = [todo] if scheduler.chains else [[recipe] for recipe in todo]
    detaches = scheduler.chains or (scheduler.detaches and len(todo) == 1)
    for batch in batches:
        done |= _hand_over(batch, site, code, dryrun=dryrun, detaches=detaches)
        if done.get("failed"):
            break
    return done


def _hand_over(
    recipes: Sequence[run.Partial], site: Site, code: CodeVersion, dryrun: bool, detaches: bool
) -> dict[str, Any]:
    """Make one experiment of recipes that follow each other."""
    scheduler = SCHEDULERS[site.scheduler]
    with (
        tempfile.TemporaryDirectory() as sent,
        _experiment(recipes[-1].log.name) as experiment,
    ):
        folder = Path(experiment._exp_dir)
        _check_folder(folder, site)
        before: list[str] = []
        for recipe in recipes:
            request = JobRequest(recipe, site, code, Path(sent))
            before = [
                experiment.add(
                    scheduler.task(request),
                    executor=scheduler.executor(request),
                    name=request.name,
                    dependencies=before or None,
                )
            ]
        if dryrun:
            experiment.dryrun(log=False, delete_exp_dir=False)
        else:
            experiment.run(detach=detaches)
    if dryrun:
        for job in experiment.jobs:
            print(scheduler.describe(job))
        shutil.rmtree(folder)
        return {"dryrun": True}
    done: dict[str, Any] = {"experiment": str(folder)}
    if detaches:
        return done | {"jobs": {job.id: _number(job.handle) for job in experiment.jobs}}
    return done | {"failed": any(job.state is not AppState.SUCCEEDED for job in experiment.jobs)}


def _find_what_is_to_do(
    recipes: Sequence[run.Partial], site: Site
) -> tuple[list[run.Partial], list[str]]:
    """Return the recipes that are not finished, and the names of the others; check their files."""
    if not site.sees_our_files:
        return list(recipes), []
    todo = [recipe for recipe in recipes if not is_finished(recipe)]
    for recipe in todo[:1]:
        check_files(recipe)
    for recipe in todo[1:]:  # what they start from is not there yet
        check_data_files(recipe)
    return todo, [recipe.log.name for recipe in recipes if recipe not in todo]


def _check_folder(folder: Path, site: Site) -> None:
    if site.scheduler == "slurm" and site.container is None and REPLACED in str(folder):
        raise ValueError(
            f"NEMORUN_HOME: {folder} has {REPLACED!r} in it, which NeMo-Run replaces in every "
            "line of a job's script; name another folder."
        )


def _without_bad_nodes(site: Site, recipes: Sequence[run.Partial]) -> Site:
    """Leave out the nodes on which these runs have failed; requeued jobs do it by themselves."""
    if site.slurm is None:
        return site
    exclude = list(site.slurm.exclude)
    if site.sees_our_files:
        for recipe in recipes:
            path = attempts_file(run_folder(recipe))
            bad = [node for node in bad_nodes(path) if node not in exclude]
            if bad:
                exclude += bad
                print(f"excluded: {', '.join(bad)}, which failed ({path}).", file=sys.stderr)
    slurm = site.slurm.model_copy(update={"exclude": tuple(exclude)})
    return site.model_copy(update={"slurm": slurm})


@contextlib.contextmanager
def _experiment(title: str) -> Iterator[run.Experiment]:
    """Open an experiment of NeMo-Run, whose own words go to standard error."""
    # NeMo-Run packs the checkout that the current folder is in.
    with (
        contextlib.chdir(PROJECT_ROOT),
        contextlib.redirect_stdout(sys.stderr),
        run.Experiment(title, log_level="WARN") as experiment,
    ):
        yield experiment


def _number(handle: str) -> str:
    """Return the scheduler's number in a handle, scheduler://session/number/..."""
    return handle.partition("://")[2].split("/")[1]
