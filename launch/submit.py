"""Recipes as jobs of a site's scheduler, one after the other."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nemo_run as run

from launch.attempts import attempts_file, bad_nodes
from launch.code_version import PROJECT_ROOT, find_code_version
from launch.executors import slurm_executor
from launch.job_script import REPLACED
from launch.recipe_paths import settle_paths
from launch.requests import check_data_files, check_files, is_finished, run_folder
from launch.site import Site


def submit(
    recipes: Sequence[run.Partial], site: Site, allow_dirty: bool = False, dryrun: bool = False
) -> dict[str, Any]:
    """Hand recipes to the scheduler of a site and return without waiting.

    Each job starts when the one before has ended well. A recipe whose run has all its steps is left
    out.

    Args:
        recipes: calls that train, in their order.
        site: of the scheduler slurm.
        allow_dirty: ship uncommitted changes too.
        dryrun: print the jobs' scripts and submit nothing.

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
    todo, finished = list(recipes), []
    if _sees_the_same_files(site):
        finished = [recipe.log.name for recipe in recipes if is_finished(recipe)]
        todo = [recipe for recipe in recipes if recipe.log.name not in finished]
        for recipe in todo[:1]:
            check_files(recipe)
        for recipe in todo[1:]:  # what they start from is not there yet
            check_data_files(recipe)
    runs = {recipe.log.name: str(run_folder(recipe)) for recipe in recipes}
    done: dict[str, Any] = {"code": str(code), "runs": runs, "finished": finished}
    if not todo:
        return done
    site = _without_bad_nodes(site, todo)
    with _experiment(todo[-1].log.name) as experiment:
        before: list[str] = []
        for recipe in todo:
            name = recipe.log.name
            executor = slurm_executor(
                site,
                recipe.trainer.num_nodes,
                recipe.trainer.devices,
                code,
                run_folder(recipe),
            )
            before = [
                experiment.add(recipe, executor=executor, name=name, dependencies=before or None)
            ]
        folder = Path(experiment._exp_dir)
        if REPLACED in str(folder) and site.container is None:
            raise ValueError(
                f"NEMORUN_HOME: {folder} has {REPLACED!r} in it, which NeMo-Run replaces in every "
                "line of a job's script; name another folder."
            )
        if dryrun:
            experiment.dryrun(log=False, delete_exp_dir=False)
        else:
            experiment.run(detach=True)
    if dryrun:
        for recipe in todo:
            print((folder / f"{recipe.log.name}_sbatch.sh").read_text(encoding="utf-8"))
        shutil.rmtree(folder)
        return done | {"dryrun": True}
    numbers = {job.id: _number(job.handle) for job in experiment.jobs}
    return done | {"jobs": numbers, "experiment": str(folder)}


def _without_bad_nodes(site: Site, recipes: Sequence[run.Partial]) -> Site:
    """Leave out the nodes on which these runs have failed; requeued jobs do it by themselves."""
    assert site.slurm is not None
    exclude = list(site.slurm.exclude)
    if _sees_the_same_files(site):
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


def _sees_the_same_files(site: Site) -> bool:
    """Return whether the ranks' paths mean here what they mean there."""
    if site.is_remote:
        return False
    folders = [] if site.container is None else site.container.folders
    return all(outside == inside for outside, inside in folders)
