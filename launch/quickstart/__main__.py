"""`python -m launch.quickstart`: the main job on a nano model, from parents to answers.

Every phase leaves its result in `runs/quickstart/<family>`; a second run does what is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from launch.quickstart.console import Console
from launch.quickstart.phases import ROOT, STATE_FILE, PhaseFailedError, Phases

WANTED = {"single_exact_match": 0.95, "strip3_exact_match": 0.85}
"""Held-out exact match that the quickstart has to reach."""


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m launch.quickstart", description=__doc__)
    parser.add_argument("--family", default="nvila")
    parser.add_argument("--out", type=Path, help=f"default: {ROOT}/<family>")
    parser.add_argument("--fresh", action="store_true", help="do everything again")
    options = parser.parse_args()
    if options.family != "nvila":
        print(f"error: family: {options.family!r} is unknown; allowed is nvila.", file=sys.stderr)
        return 2
    folder = (options.out or ROOT / options.family).resolve()
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
        figures, report = Phases(folder, console).run()
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
    missed = [name for name, bound in WANTED.items() if figures[name] < bound]
    for name in missed:
        print(f"error: {name} is below {WANTED[name]}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
