"""The phases that are the same in every family."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.quickstart.digits import write_digits
from launch.quickstart.workspace import Phase, PhaseFailedError, Workspace
from recipes.steps_file import STEPS_FILE

if TYPE_CHECKING:
    import nemo_run as run

EVALUATION_FILE = "evaluation.json"


def write_data(workspace: Workspace) -> None:
    """Write the digits."""
    write_digits(workspace.clear("data"))


def train(
    workspace: Workspace,
    recipe: run.Partial,
    train_paths: Sequence[Path],
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Run a recipe on some of the data and show its steps.

    Raises:
        PhaseFailedError: the job failed.
    """
    from launch.train import run_recipe

    recipe.data.train_paths = [str(path) for path in train_paths]
    recipe.data.weights = None if weights is None else list(weights)
    recipe.data.validation_paths = [str(workspace.digits.validation_strips)]
    recipe.data.image_folder = str(workspace.digits.images)
    steps_file = workspace.folder / recipe.log.name / STEPS_FILE
    with workspace.console.watching(lambda: describe_step(steps_file, recipe.trainer.max_steps)):
        result = run_recipe(recipe, tail_logs=True)
    if result.pop("failed"):
        raise PhaseFailedError("the job did not succeed")
    return result


def describe_step(steps_file: Path, max_steps: int) -> str | None:
    """Describe the last step of a run, read from the end of its log."""
    if not steps_file.is_file():
        return None
    lines = steps_file.read_text(encoding="utf-8").splitlines()
    try:
        row = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None  # the line is being written
    if row is None:
        return None
    return (
        f"  step {row['step'] + 1}/{max_steps}  loss {row['loss']:.4f}  {row['seconds']:.2f} s/step"
    )


def export(workspace: Workspace) -> dict[str, Any]:
    """Export what the stage `sft` trained."""
    from launch import backend

    backend.activate(cpu=True)
    from converters.export_hf import export_checkpoint
    from models.checkpoint_paths import find_checkpoint

    return export_checkpoint(find_checkpoint(workspace.folder / "sft"), workspace.clear("hf"))


def verify(workspace: Workspace) -> dict[str, Any]:
    """Compare the checkpoint and its export.

    Raises:
        PhaseFailedError: they are not the same model.
    """
    from launch import backend

    backend.activate(cpu=True)
    from converters.verify import verify_checkpoint
    from models.checkpoint_paths import find_checkpoint

    result = verify_checkpoint(workspace.folder / "hf", find_checkpoint(workspace.folder / "sft"))
    if not result.passed:
        raise PhaseFailedError(f"the two models differ: {result.to_dict()}")
    return result.to_dict()


def evaluate(workspace: Workspace, tasks: Sequence[str]) -> dict[str, Any]:
    """Ask the exported model in a process of its own; all rows go to a file."""
    out = workspace.folder / EVALUATION_FILE
    subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.quickstart.evaluate",
            *("--hf", str(workspace.folder / "hf")),
            *("--data", str(workspace.folder / "data")),
            *("--out", str(out)),
            *("--tasks", *tasks),
        ],
        check=True,
    )
    return json.loads(out.read_text(encoding="utf-8"))["figures"]


DATA = Phase(name="data", description="handwritten digits as LLaVA JSONL", work=write_data)
EXPORT = Phase(name="export", description="NeMo checkpoint -> Hugging Face directory", work=export)
VERIFY = Phase(name="verify", description="bits and logits of both sides", work=verify)


def evaluate_phase(*tasks: str) -> Phase:
    """Make the phase that asks the questions of some tasks (`single`, `strip3`)."""
    return Phase(
        name="evaluate",
        description="the exported model reads held-out images",
        work=partial(evaluate, tasks=tasks),
        reported=True,
    )
