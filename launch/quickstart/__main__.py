"""`python -m launch.quickstart`: the main job on a nano model, from parents to answers.

Every phase leaves its result in `runs/quickstart/<family>`; a second run does what is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from launch.quickstart.console import Console
from launch.quickstart.families import FAMILIES
from launch.quickstart.phases import ROOT, STATE_FILE, Phases
from launch.quickstart.workspace import PhaseFailedError


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m launch.quickstart", description=__doc__)
    parser.add_argument("--family", default="nvila", help=f"one of {', '.join(FAMILIES)}")
    parser.add_argument("--out", type=Path, help=f"default: {ROOT}/<family>")
    parser.add_argument("--fresh", action="store_true", help="do everything again")
    options = parser.parse_args(arguments)
    if options.family not in FAMILIES:
        known = " or ".join(FAMILIES)
        print(f"error: family: {options.family!r} is unknown; allowed is {known}.", file=sys.stderr)
        return 2
    family = FAMILIES[options.family]
    folder = (options.out or ROOT / family.name).resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / STATE_FILE).is_file():
        print(
            f"error: out: {folder} is not empty and holds no quickstart; give another folder.",
            file=sys.stderr,
        )
        return 2
    if options.fresh and folder.exists():
        shutil.rmtree(folder)
    console = Console()
    started = time.perf_counter()
    try:
        phases = Phases(family, folder, console)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        figures, report = phases.run()
    except PhaseFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.line("")
    for name, value in figures.items():
        console.line(
            f"  {name:32} {value:.4g}" if isinstance(value, float) else f"  {name:32} {value}"
        )
    console.line("")
    console.line(f"report: {report}   ({time.perf_counter() - started:.0f} s)")
    missed = missed_bounds(figures, family.wanted)
    for line in missed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if missed else 0


def missed_bounds(figures: dict[str, Any], wanted: dict[str, float]) -> list[str]:
    """Return a sentence for each figure that is below its bound."""
    return [
        f"{name} is {figures[name]:.4g}, below {bound}."
        for name, bound in wanted.items()
        if figures[name] < bound
    ]


if __name__ == "__main__":
    sys.exit(main())
