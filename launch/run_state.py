"""What the files of a run say about it: how far it is, how fast, and what stopped it."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.attempts import attempts_file, read_attempts
from recipes.steps_file import BAD_STEPS_FILE, RUN_FILE, STEPS_FILE, read_steps

_RECENT_STEPS = 50
_SILENT_STEPS = 20
_SILENT_SECONDS = 120.0


@dataclass(frozen=True)
class RunState:
    """A run as its folder shows it.

    Args:
        folder: of the run.
    """

    folder: Path

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The rows of its step log."""
        return read_steps(self.folder / STEPS_FILE)

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        """What its jobs have written down."""
        return read_attempts(attempts_file(self.folder))

    @cached_property
    def bad_steps(self) -> list[dict[str, Any]]:
        """The steps whose loss or gradients were not good."""
        return read_steps(self.folder / BAD_STEPS_FILE)

    @property
    def skipped_steps(self) -> list[int]:
        """Those whose update was left out."""
        return [row["step"] for row in self.bad_steps if row["action"] == "skip"]

    @cached_property
    def _described(self) -> dict[str, Any]:
        path = self.folder / RUN_FILE
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    @property
    def max_steps(self) -> int | None:
        """How many steps it shall have, once it has begun."""
        return self._described.get("max_steps")

    @property
    def code(self) -> str | None:
        """The commit that its last job got."""
        return self._described.get("code")

    @property
    def steps_done(self) -> int:
        """How many steps it has."""
        return self.steps[-1]["step"] + 1 if self.steps else 0

    @property
    def is_finished(self) -> bool:
        """Whether it has all its steps."""
        return self.max_steps is not None and self.steps_done >= self.max_steps

    @property
    def seconds_per_step(self) -> float | None:
        """The median of the last steps."""
        seconds = [row["seconds"] for row in self.steps[-_RECENT_STEPS:]]
        return statistics.median(seconds) if seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last steps, without padding."""
        rows = [row for row in self.steps[-_RECENT_STEPS:] if row.get("tokens")]
        seconds = sum(row["seconds"] for row in rows)
        return sum(row["tokens"] for row in rows) / seconds if seconds else None

    @property
    def samples_per_second(self) -> float | None:
        """Over the last steps."""
        rows = [row for row in self.steps[-_RECENT_STEPS:] if row.get("consumed_samples")]
        if len(rows) < 2:
            return None
        samples = rows[-1]["consumed_samples"] - rows[0]["consumed_samples"]
        seconds = sum(row["seconds"] for row in rows[1:])
        return samples / seconds if seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the pace of the last ones."""
        if self.max_steps is None or self.seconds_per_step is None:
            return None
        return (self.max_steps - self.steps_done) * self.seconds_per_step

    @property
    def job(self) -> str | None:
        """The number of its newest job."""
        return self.attempts[-1]["job"] if self.attempts else None

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """The ends of its attempts but for a finished one."""
        ends = [line for line in self.attempts if "end" in line]
        return [line for line in ends if line["reason"] != "finished"]

    def describe(self, now: float) -> str:
        """Return finished, running, waiting, or what it stopped with.

        Args:
            now: seconds since 1970.
        """
        if self.is_finished:
            return "finished"
        state = None if self.job is None else job_state(self.job)
        if state in ("PENDING", "CONFIGURING"):
            return f"waiting (job {self.job})"
        if state in ("RUNNING", "COMPLETING"):
            return f"running (job {self.job})"
        if state is None and self._moves(now):
            return "running"
        if self.restarts:
            return f"stopped: {self.restarts[-1]['reason']}"
        return "stopped" if self.steps else "not begun"

    def _moves(self, now: float) -> bool:
        if not self.steps or "time" not in self.steps[-1]:
            return False
        patience = max(_SILENT_SECONDS, _SILENT_STEPS * (self.seconds_per_step or 0.0))
        return now - self.steps[-1]["time"] < patience


def job_state(number: str) -> str | None:
    """Ask Slurm for the state of a job; None where there is no Slurm or it does not know it."""
    try:
        found = subprocess.run(
            ["squeue", "--noheader", "--jobs", number, "--format", "%T"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def find_runs(folder: Path) -> list[RunState]:
    """Return the run in a folder, or the runs in its folders, oldest first.

    Raises:
        ValueError: there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"dir: {folder} is no folder; name that of a run, or one of runs.")
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    runs = [RunState(path) for path in candidates if (path / "log").is_dir()]
    runs = [run for run in runs if run.steps or run.attempts or run.max_steps is not None]
    if not runs:
        raise ValueError(f"dir: {folder} has no run; a run has a folder log with steps.jsonl.")
    return sorted(runs, key=_begun)


def _begun(run: RunState) -> float:
    times = [row["time"] for row in [*run.attempts[:1], *run.steps[:1]] if "time" in row]
    return min(times, default=0.0)
