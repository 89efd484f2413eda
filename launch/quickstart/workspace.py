"""The folder of a quickstart, and the phases that work in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.quickstart.console import Console
from launch.quickstart.digits import DigitFiles, digit_files


class PhaseFailedError(RuntimeError):
    """A phase did not succeed; the message names its log."""


@dataclass(frozen=True)
class Workspace:
    """Where a quickstart writes.

    Attributes:
        folder: Everything goes here (absolute).
        console: Where progress is shown.
    """

    folder: Path
    console: Console

    @property
    def digits(self) -> DigitFiles:
        """The data files."""
        return digit_files(self.folder / "data")

    def clear(self, name: str) -> Path:
        """Return a folder after removing what an interrupted run left in it."""
        folder = self.folder / name
        if folder.exists():
            shutil.rmtree(folder)
        return folder


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One step, done once.

    Attributes:
        name: Of its log and of its line in the report.
        description: For the terminal.
        work: Does it and returns its figures.
        reported: Whether its figures stand in the report.
    """

    name: str
    description: str
    work: Callable[[Workspace], dict[str, Any] | None]
    reported: bool = False


@dataclass(frozen=True, kw_only=True)
class QuickstartFamily:
    """One family's way from random weights to answers.

    Attributes:
        name: What the user calls it.
        title: Of the report.
        phases: In order; one of them is `evaluate`, whose figures hold the shown answers, and one
            `verify`.
        stages: The trainings, whose loss curves the report shows; each is a phase too.
        wanted: Figures of the report that have to be reached.
    """

    name: str
    title: str
    phases: tuple[Phase, ...]
    stages: tuple[str, ...]
    wanted: dict[str, float]
