"""Runs a family's phases, each once, and writes the report."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from launch.quickstart.console import Console, output_to
from launch.quickstart.memory import PeakMemory
from launch.quickstart.report import Shown, write_report
from launch.quickstart.workspace import Phase, PhaseFailedError, QuickstartFamily, Workspace
from recipes.steps_file import STEPS_FILE, read_steps

ROOT = Path("runs") / "quickstart"
STATE_FILE = "state.json"
_FAMILY, _PEAK = "family", "peak"


class Phases:
    """Runs what is missing in a folder.

    Args:
        family: what to run.
        folder: everything goes here (absolute).
        console: where progress is shown.

    Raises:
        ValueError: the folder holds the quickstart of another family.
    """

    def __init__(self, family: QuickstartFamily, folder: Path, console: Console) -> None:
        self.family = family
        self.workspace = Workspace(folder, console)
        self._state_file = folder / STATE_FILE
        self._state: dict[str, Any] = {}
        if self._state_file.is_file():
            self._state = json.loads(self._state_file.read_text(encoding="utf-8"))
            # There was one family before the state named it.
            found = self._state.get(_FAMILY, "nvila")
            if found != family.name:
                raise ValueError(
                    f"out: {folder} holds a quickstart of {found}; give another folder or --fresh."
                )
        self._state[_FAMILY] = family.name

    def run(self) -> tuple[dict[str, Any], Path]:
        """Run all phases.

        Returns:
            The figures of the report and its path.

        Raises:
            PhaseFailedError: a phase failed.
        """
        folder = self.workspace.folder
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("NEMORUN_HOME", str(folder / "nemo_run"))
        # Nothing here may ask a hub: the models and the data are made on this machine.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        folder.mkdir(parents=True, exist_ok=True)
        self._write_state()
        with PeakMemory() as memory:
            for phase in self.family.phases:
                self._run_phase(phase)
        return self._report(memory.peak_bytes)

    def _run_phase(self, phase: Phase) -> None:
        console, name = self.workspace.console, phase.name
        if name in self._state:
            console.line(f"[{name}] done before in {self._state[name]['seconds']:.0f} s")
            return
        console.line(f"[{name}] {phase.description}")
        log, started = self.workspace.folder / "logs" / f"{name}.log", time.perf_counter()
        try:
            with output_to(log):
                figures = phase.work(self.workspace) or {}
        except Exception as error:
            raise PhaseFailedError(f"{name} failed ({error}); its log is {log}") from error
        seconds = time.perf_counter() - started
        self._state[name] = {"seconds": seconds, "figures": figures}
        self._write_state()
        console.line(f"[{name}] {seconds:.0f} s")

    def _write_state(self) -> None:
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps(self._state, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._state_file)

    def _report(self, peak_bytes: int) -> tuple[dict[str, Any], Path]:
        # A run that only repeats the report keeps the peak of the run that did the work.
        peak = max(peak_bytes / 2**30, self._state.get(_PEAK, {}).get("rss_gb", 0.0))
        self._state[_PEAK] = {"rss_gb": peak, "seconds": 0.0}
        self._write_state()
        seconds = {phase.name: self._state[phase.name]["seconds"] for phase in self.family.phases}
        figures: dict[str, Any] = {}
        for phase in self.family.phases:
            if phase.reported:
                figures |= self._state[phase.name]["figures"]
        shown = figures.pop("shown")
        logit_differences = self._state["verify"]["figures"]["logit_differences"]
        figures |= {
            "max_logit_difference": max(logit_differences.values()),
            "seconds": sum(seconds.values()),
            "peak_rss_gb": peak,
        }
        folder = self.workspace.folder
        losses = {
            stage: [row["loss"] for row in read_steps(folder / stage / STEPS_FILE)]
            for stage in self.family.stages
        }
        path = write_report(
            folder, self.family.title, figures, seconds, losses, [_shown(row) for row in shown]
        )
        return figures, path


def _shown(row: dict[str, Any]) -> Shown:
    return Shown(
        image=Path(row["images"][0]),
        question=row["question"].removeprefix("<image>\n"),
        answer=row["answer"],
        truth=row["truth"],
    )
