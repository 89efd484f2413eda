"""The verb status: a line for each run, and one for each of its restarts."""

from __future__ import annotations

import time
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.run_state import RunState, find_runs

_COLUMNS = (
    "run",
    "state",
    "step",
    "loss",
    "s/step",
    "samples/s",
    "tokens/s",
    "left",
    "restarts",
    "skipped",
)


def show_status(options: Namespace) -> dict[str, Any]:
    """Print the state of runs; return it."""
    now = time.time()
    runs = [run for folder in options.dirs for run in find_runs(Path(folder))]
    rows = [_row(run, now) for run in runs]
    print_table([dict(zip(_COLUMNS, _COLUMNS, strict=True)), *rows])
    for run in runs:
        for line in run.restarts:
            print(f"{run.folder.name}: {describe_restart(line)}")
    return {"runs": [_figures(run, now) for run in runs]}


def print_table(rows: list[dict[str, str]]) -> None:
    """Print rows with the same keys, their columns below each other."""
    widths = {name: max(len(row[name]) for row in rows) for name in rows[0]}
    for row in rows:
        print("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())


def describe_restart(line: dict[str, Any]) -> str:
    """Return one sentence about the end of an attempt."""
    when = datetime.fromtimestamp(line["time"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    nodes = f"; bad nodes: {', '.join(line['bad_nodes'])}" if line["bad_nodes"] else ""
    progress = "" if line["progress"] else "; no new checkpoint"
    return (
        f"{when}, job {line['job']}, attempt {line['restart']}: {line['reason']}{progress}{nodes}"
    )


def duration(seconds: float | None) -> str:
    """Spell a duration: 3d 04:05, 4:05:06, 5:06; "-" for None."""
    if seconds is None:
        return "-"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _row(run: RunState, now: float) -> dict[str, str]:
    goal = "" if run.max_steps is None else f"/{run.max_steps}"
    values = (
        run.folder.name,
        run.describe(now),
        f"{run.steps_done}{goal}",
        _number(run.steps[-1]["loss"] if run.steps else None, ".4f"),
        _number(run.seconds_per_step, ".3g"),
        _number(run.samples_per_second, ".4g"),
        _number(run.tokens_per_second, ".4g"),
        "-" if run.is_finished else duration(run.seconds_left),
        str(len(run.restarts)),
        str(len(run.skipped_steps)),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _figures(run: RunState, now: float) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "state": run.describe(now),
        "job": run.job,
        "steps": run.steps_done,
        "max_steps": run.max_steps,
        "loss": run.steps[-1]["loss"] if run.steps else None,
        "seconds_per_step": run.seconds_per_step,
        "samples_per_second": run.samples_per_second,
        "tokens_per_second": run.tokens_per_second,
        "seconds_left": run.seconds_left,
        "restarts": run.restarts,
        "skipped_steps": run.skipped_steps,
    }
