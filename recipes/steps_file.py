"""The log of a run's optimizer steps, one JSON line each. Importing this is free."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STEPS_FILE = "log/steps.jsonl"
"""Below the run's folder, and not in it: NeMo moves the files there aside when a run resumes."""

BAD_STEPS_FILE = "log/bad_steps.jsonl"
"""Steps that were left out or tried again: {"step", "fault", "action", "samples"}."""

VALIDATION_FILE = "log/validation.jsonl"
"""What each validation of a preference run found: {"step", "pairs", and its figures}."""

RUN_FILE = "log/run.json"
"""What stays the same in a run: {"max_steps"}, and "code" where a job's scheduler knows it."""

CODE_VARIABLE = "NEMO_VLM_CODE"
"""Variable of a job's ranks: the commit that they run."""


def read_steps(path: str | Path) -> list[dict[str, Any]]:
    """Read a log; a line cut off by a killed process is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def rewrite_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a log anew; on a full disk the old one stays."""
    beside = path.with_name(f"{path.name}.new")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    beside.write_text("".join(lines), encoding="utf-8")
    beside.replace(path)
