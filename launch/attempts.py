"""What became of a run's attempts on a cluster, as `launch/requeue.sh` writes it down."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

_BAD_FOR_SECONDS = 24 * 3600
"""After a day a node has been looked after, or the fault was not its own."""


def attempts_file(run_folder: Path) -> Path:
    """Return where the attempts of a run are written down: JSON lines, oldest first."""
    return run_folder / "log" / "attempts.jsonl"


def read_attempts(path: Path) -> list[dict[str, Any]]:
    """Return what was written; nothing where there is no file.

    Each line has "time" (seconds since 1970), "job" and "restart". A line with "nodes" says that an
    attempt began there; one with "end" that it ended: its exit status (None: nobody saw it end),
    "reason", "progress" (whether there was a new checkpoint) and "bad_nodes".
    """
    if not path.is_file():
        return []
    attempts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut off by a full disk
            attempts.append(json.loads(line))
    return attempts


def bad_nodes(path: Path, now: float | None = None) -> list[str]:
    """Return the nodes on which a run has failed within a day, in their order.

    Args:
        path: of the attempts.
        now: seconds since 1970; None takes the clock.
    """
    since = (time.time() if now is None else now) - _BAD_FOR_SECONDS
    nodes = (
        node
        for line in read_attempts(path)
        if line["time"] >= since
        for node in line.get("bad_nodes", [])
    )
    return list(dict.fromkeys(nodes))
