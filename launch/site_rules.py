"""What a site says about the runs themselves, put into a recipe."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from launch.requests import run_folder
from launch.site import Site

if TYPE_CHECKING:
    import nemo_run as run


def apply_site(recipe: run.Partial, site: Site) -> None:
    """Set what the site says about bad steps, slow GPUs and where curves go, in place.

    Raises:
        ValueError: a value that is not allowed, or the recipe does not look for bad steps.
    """
    _set_bad_step_rules(recipe, site)
    _add_straggler_detection(recipe, site)
    _add_loggers(recipe, site)


def _set_bad_step_rules(recipe: run.Partial, site: Site) -> None:
    import fiddle as fdl

    from recipes.bad_steps import BadSteps

    said = {} if site.bad_steps is None else site.bad_steps.model_dump(exclude_none=True)
    if not said:
        return
    rules = [one for one in recipe.trainer.callbacks if fdl.get_callable(one) is BadSteps]
    if not rules:
        raise ValueError("bad_steps: the site has rules, but the recipe has no callback BadSteps.")
    for rule in rules:
        for name, value in said.items():
            setattr(rule, name, value)
        BadSteps(**fdl.ordered_arguments(rule))


def _add_straggler_detection(recipe: run.Partial, site: Site) -> None:
    if site.stragglers is None:
        return
    import nemo_run as run
    from nvidia_resiliency_ext.ptl_resiliency import StragglerDetectionCallback

    said = site.stragglers
    recipe.trainer.callbacks.append(
        run.Config(
            StragglerDetectionCallback,
            report_time_interval=60 * said.report_minutes,
            calc_relative_gpu_perf=True,
            calc_individual_gpu_perf=True,
            num_gpu_perf_scores_to_print=5,
            gpu_relative_perf_threshold=said.threshold,
            gpu_individual_perf_threshold=said.threshold,
            stop_if_detected=said.stop,
            enable_ptl_logging=True,
        )
    )


def _add_loggers(recipe: run.Partial, site: Site) -> None:
    """Add loggers that know a run by its folder, wherever it is started from."""
    if site.wandb is None and site.mlflow is None:
        return
    import nemo_run as run
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    folder, name = str(run_folder(recipe).absolute()), recipe.log.name
    if site.wandb is not None:
        recipe.log.wandb = run.Config(
            WandbLogger,
            project=site.wandb.project,
            entity=site.wandb.entity,
            name=name,
            id=f"{name}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}",
            resume="allow",
            save_dir=folder,
        )
    if site.mlflow is not None:
        logger = run.Config(
            MLFlowLogger,
            experiment_name=site.mlflow.experiment,
            run_name=name,
            tracking_uri=site.mlflow.tracking_uri,
            tags={"run_folder": folder},
        )
        recipe.log.extra_loggers = [*recipe.log.__arguments__.get("extra_loggers", ()), logger]
