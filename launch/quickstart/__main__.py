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
from launch.quickstart.phases import ROOT, Phases


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
    folder = options.out or ROOT / options.family
    if options.fresh and folder.exists():
        shutil.rmtree(folder)
    console = Console()
    started = time.perf_counter()
    figures, report = Phases(folder.resolve(), console).run()
    console.line("")
    for name, value in figures.items():
        console.line(
            f"  {name:32} {value:.4g}" if isinstance(value, float) else f"  {name:32} {value}"
        )
    console.line("")
    console.line(f"report: {report}   ({time.perf_counter() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
