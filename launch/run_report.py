"""The verb report: one HTML page about a run, with curves on which every restart is marked."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datamodules.bad_samples import count_bad_samples
from launch.html_page import curve, figures_table, page, table
from launch.run_state import RunState, find_runs
from launch.status import describe_restart, duration

_MOST_POINTS = 2000
_BAD_STEP_COLUMNS = ("step", "fault", "action", "samples")


def write_report(options: Namespace) -> dict[str, Any]:
    """Write the page and say where it is.

    Raises:
        ValueError: the folder is not that of one run, or the file cannot be written.
    """
    folder = Path(options.dir)
    runs = find_runs(folder)
    if len(runs) > 1 or runs[0].folder != folder:
        names = ", ".join(run.folder.name for run in runs)
        raise ValueError(f"dir: {folder} has the runs {names}; name one of them.")
    path = folder / "report.html" if options.out is None else Path(options.out)
    try:
        path.write_text(report_page(runs[0], time.time()), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"out: {path} cannot be written ({error.strerror}).") from error
    return {"report": str(path)}


def report_page(run: RunState, now: float) -> str:
    """Return the page.

    Args:
        run: of one folder.
        now: seconds since 1970.
    """
    marks = _marks(run)
    parts = [
        figures_table("Run", _figures(run, now)),
        "<h2>Steps</h2><p>A dashed line is a restart; point at it for its reason.</p>",
        "<div class='curves'>",
        *(
            curve(name, _points(run, value), marks, width=540, height=220)
            for name, value in _CURVES.items()
        ),
        "</div>",
        table("Restarts", ("attempt",), [(describe_restart(line),) for line in run.restarts]),
    ]
    parts.append(table("Bad steps", _BAD_STEP_COLUMNS, map(_bad_step, run.bad_steps)))
    bad = run.folder / "log" / "bad_samples.jsonl"
    counts = sorted(count_bad_samples(bad).items()) if bad.is_file() else []
    rows = [(source, reason, str(count)) for (source, reason), count in counts]
    parts.append(table("Samples that could not be used", ("source", "reason", "count"), rows))
    return page(f"Run {run.folder.name}", parts)


def _bad_step(row: dict[str, Any]) -> tuple[str, ...]:
    action = {"skip": "skipped", "roll_back": "gone back"}[row["action"]]
    return str(row["step"]), row["fault"], action, ", ".join(row["samples"])


def _tokens_per_second(row: dict[str, Any], before: dict[str, Any] | None) -> float | None:
    return row["tokens"] / row["seconds"] if row.get("tokens") else None


def _samples_per_second(row: dict[str, Any], before: dict[str, Any] | None) -> float | None:
    if before is None or not before.get("consumed_samples") or not row.get("consumed_samples"):
        return None
    return (row["consumed_samples"] - before["consumed_samples"]) / row["seconds"]


_CURVES: dict[str, Callable[[dict[str, Any], dict[str, Any] | None], float | None]] = {
    "loss": lambda row, before: row["loss"],
    "gradient norm": lambda row, before: row["grad_norm"],
    "learning rate": lambda row, before: row["learning_rate"],
    "seconds per step": lambda row, before: row["seconds"],
    "samples per second": _samples_per_second,
    "tokens per second": _tokens_per_second,
}


def _points(
    run: RunState, value: Callable[[dict[str, Any], dict[str, Any] | None], float | None]
) -> list[tuple[float, float]]:
    """Return (step, value); of a long run every n-th."""
    befores = [None, *run.steps]
    found = [
        (row["step"], value(row, before)) for row, before in zip(run.steps, befores, strict=False)
    ]
    points = [(float(step), y) for step, y in found if y is not None]
    return points[:: len(points) // _MOST_POINTS + 1]


def _marks(run: RunState) -> dict[float, str]:
    """Return the restarts by the step that came next."""
    marks: dict[float, str] = {}
    for line in run.restarts:
        done = [row["step"] for row in run.steps if row.get("time", 0.0) <= line["time"]]
        step = float(done[-1] + 1 if done else 0)
        marks[step] = "; ".join(filter(None, [marks.get(step), describe_restart(line)]))
    return marks


def _figures(run: RunState, now: float) -> dict[str, str]:
    last = run.steps[-1] if run.steps else None
    speed, tokens = run.samples_per_second, run.tokens_per_second
    return {
        "state": run.describe(now),
        "steps": f"{run.steps_done} of {'?' if run.max_steps is None else run.max_steps}",
        "last loss": "-" if last is None else f"{last['loss']:.4f}",
        "samples per second": "-" if speed is None else f"{speed:.4g}",
        "tokens per second": "-" if tokens is None else f"{tokens:.4g}",
        "left": "-" if run.is_finished else duration(run.seconds_left),
        "restarts": str(len(run.restarts)),
        "skipped steps": str(len(run.skipped_steps)),
        "code": run.code or "-",
    }
