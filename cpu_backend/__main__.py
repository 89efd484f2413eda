"""`python -m cpu_backend script.py [args]` and `python -m cpu_backend -m package.module [args]`.

Runs the program in this process with the backend on; its children switch it on by themselves.
"""

import os
import runpy
import sys
from pathlib import Path

from cpu_backend import child_environment, enable

USAGE = "usage: python -m cpu_backend (script.py | -m package.module) [arguments]"


def main() -> None:
    """Enables the backend and runs the program that the arguments name."""
    arguments = sys.argv[1:]
    is_module = arguments[:1] == ["-m"]
    arguments = arguments[1:] if is_module else arguments
    if not arguments or (arguments[0].startswith("-")):
        sys.exit(USAGE)
    if not is_module and not Path(arguments[0]).exists():
        sys.exit(f"python -m cpu_backend: the script {arguments[0]!r} does not exist.")
    enable()
    os.environ.update(child_environment())
    sys.argv = arguments
    if is_module:
        # The working directory is on sys.path already, as for `python -m`.
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        # As for `python script.py`; the working directory stays too, where this repository is.
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
