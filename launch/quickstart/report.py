"""report.json and report.html: figures, loss curves, and questions with their answers."""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.html_page import curve, figures_table, page

_STYLE = """
.answers { display: flex; flex-wrap: wrap; gap: 1.2rem }
.answers figure { width: 240px }
.answers img { height: 56px; image-rendering: pixelated; background: #000 }
.wrong { color: #b3261e } .right { color: #146c2e }
"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One question of the report."""

    image: Path
    question: str
    answer: str
    truth: str


def write_report(
    folder: Path,
    title: str,
    figures: dict[str, Any],
    seconds: dict[str, float],
    losses: dict[str, list[float]],
    shown: list[Shown],
) -> Path:
    """Write both files and return the path of the HTML.

    Args:
        folder: where to write.
        title: of the page.
        figures: the results, also written to report.json.
        seconds: wall time by phase.
        losses: loss per step by stage.
        shown: questions with images.
    """
    content = figures | {"seconds_by_phase": seconds}
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    parts = [
        figures_table("Results", {name: _format(value) for name, value in figures.items()}),
        "<h2>Loss</h2><div class='curves'>",
        *(curve(stage, list(enumerate(values))) for stage, values in losses.items()),
        "</div><h2>Held-out images, answered by the exported model</h2><div class='answers'>",
        *(_answer(item) for item in shown),
        "</div>",
        figures_table("Wall time", {name: f"{value:.1f} s" for name, value in seconds.items()}),
    ]
    path = folder / "report.html"
    path.write_text(page(title, parts, _STYLE), encoding="utf-8")
    return path


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _answer(item: Shown) -> str:
    kind = "png" if item.image.suffix == ".png" else "jpeg"
    data = base64.b64encode(item.image.read_bytes()).decode("ascii")
    verdict = "right" if item.answer == item.truth else "wrong"
    return (
        f"<figure><img alt='' src='data:image/{kind};base64,{data}'>"
        f"<figcaption>{html.escape(item.question)}<br>"
        f"<span class='{verdict}'>{html.escape(item.answer)}</span> "
        f"(truth: {html.escape(item.truth)})</figcaption></figure>"
    )
