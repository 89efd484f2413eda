"""report.json and report.html: figures, loss curves, and questions with their answers."""

from __future__ import annotations

import base64
import html
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT, _MARGIN = 360, 180, 34
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto;
       padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .25rem .9rem .25rem 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.curves, .answers { display: flex; flex-wrap: wrap; gap: 1.2rem }
figure { margin: 0 } figcaption { font-size: 13px; color: #55606e }
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
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        _table("Results", {name: _format(value) for name, value in figures.items()}),
        "<h2>Loss</h2><div class='curves'>",
        *(_curve(stage, values) for stage, values in losses.items()),
        "</div><h2>Held-out images, answered by the exported model</h2><div class='answers'>",
        *(_answer(item) for item in shown),
        "</div>",
        _table("Wall time", {name: f"{value:.1f} s" for name, value in seconds.items()}),
    ]
    path = folder / "report.html"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(title: str, rows: dict[str, str]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='number'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<h2>{html.escape(title)}</h2><table>{lines}</table>"


def _curve(stage: str, values: list[float]) -> str:
    values = [value for value in values if math.isfinite(value)]
    top = max(values, default=1.0) or 1.0
    span = max(len(values) - 1, 1)
    inner_width, inner_height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    points = " ".join(
        f"{_MARGIN + inner_width * step / span:.1f},"
        f"{_HEIGHT - _MARGIN - inner_height * value / top:.1f}"
        for step, value in enumerate(values)
    )
    base = _HEIGHT - _MARGIN
    axes = f"M{_MARGIN},{_MARGIN} V{base} H{_WIDTH - _MARGIN}"
    text = "font-size='11' fill='#55606e'"
    return (
        f"<figure><svg width='{_WIDTH}' height='{_HEIGHT}' role='img'>"
        f"<path d='{axes}' fill='none' stroke='#b8c0cc'/>"
        f"<polyline points='{points}' fill='none' stroke='#2f6fde' stroke-width='1.5'/>"
        f"<text x='4' y='{_MARGIN + 4}' {text}>{top:.2g}</text>"
        f"<text x='4' y='{base + 4}' {text}>0</text>"
        f"<text x='{_WIDTH - _MARGIN - 24}' y='{_HEIGHT - 12}' {text}>{len(values)} steps</text>"
        f"</svg><figcaption>{html.escape(stage)}: {_ends(values)}</figcaption></figure>"
    )


def _ends(values: list[float]) -> str:
    return f"{values[0]:.3f} to {values[-1]:.3f}" if values else "no steps"


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
