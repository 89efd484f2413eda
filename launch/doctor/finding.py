"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """A row of the doctor's table.

    Args:
        check: what was looked at.
        verdict: "bad" where a training would fail or be wrong.
        found: the value, with its unit.
        advice: what to do, unless all is well.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
