"""Lines of a job's script that NeMo-Run's template does not write, or writes wrong.

The template exports variables under upper-case names and without quotes, and replaces `/nemo_run`
everywhere in a script without a container by the job's folder; here they are exported once more, as
they are meant.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.code_version import CodeVersion

CODE_FOLDER = "/nemo_run/code"
"""Where NeMo-Run unpacks the code; without a container it puts the job's folder here."""

REPLACED = "/nemo_run"
"""NeMo-Run puts the job's folder in its place, in a script without a container."""

DISK_WAIT_SECONDS = 600

_REQUEUE = Path(__file__).with_name("requeue.sh")

_UNREPLACED = "/nemo''_run"
"""For a shell the same text in single quotes."""


def quote(text: str) -> str:
    """Quote text for a script, so that it arrives unchanged."""
    quoted = shlex.quote(text)
    if REPLACED not in quoted:
        return quoted
    if not quoted.startswith("'"):
        quoted = f"'{quoted}'"
    return quoted.replace(REPLACED, _UNREPLACED)


def setup_lines(
    code: CodeVersion,
    environment: Mapping[str, str],
    lines: Sequence[str] = (),
    python_path: str | None = None,
    programs: str | None = None,
) -> str:
    """Return the lines between the head of a script and its ranks.

    Args:
        code: what is shipped.
        environment: variables by name, of any case and with any value.
        lines: of the site.
        python_path: a folder that the ranks' Python needs beside the code, in which they start.
        programs: folder of the Python that runs the ranks, put before the others.
    """
    paths = []
    if python_path is not None:  # not quoted: NeMo-Run's folder is replaced in it
        paths.append(f'export PYTHONPATH="{python_path}${{PYTHONPATH:+:$PYTHONPATH}}"')
    if programs is not None:
        paths.append(f'export PATH={quote(programs)}":$PATH"')
    return "\n".join(
        [
            f"echo {quote(f'code: nemo-vlm-recipes {code}')}",
            *(f"export {name}={quote(value)}" for name, value in environment.items()),
            *paths,
            *lines,
        ]
    )


def requeue_lines(
    run_folder: str,
    retries: int,
    exclude: Sequence[str] = (),
    disk_wait_seconds: int = DISK_WAIT_SECONDS,
    doctor: Sequence[str] = (),
) -> str:
    """Return the lines that start a job once more, as long as it makes progress.

    Args:
        run_folder: of the recipe, as the node sees it outside of a container.
        retries: attempts without a new checkpoint that are allowed after the first.
        exclude: nodes that the site leaves out.
        disk_wait_seconds: before a job looks again whether there is space for a checkpoint.
        doctor: arguments of the verb doctor, which then looks at the nodes first.
    """
    excluded = quote(",".join(exclude))
    return "\n".join(
        [
            "{ set +vx; } 2>/dev/null",
            f"run_folder={quote(run_folder)} retries={retries} site_exclude={excluded} "
            f"disk_wait_seconds={disk_wait_seconds} doctor=({' '.join(map(quote, doctor))})",
            _REQUEUE.read_text(encoding="utf-8").rstrip(),
        ]
    )
