"""Parts of the HTML reports: a page that fetches nothing, tables, and curves as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto;
       padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .25rem .9rem .25rem 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.curves { display: flex; flex-wrap: wrap; gap: 1.2rem }
figure { margin: 0 } figcaption { font-size: 13px; color: #55606e }
"""
_MARGIN = 34
_TEXT = "font-size='11' fill='#55606e'"


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """Return a whole page.

    Args:
        title: of the page, as text.
        parts: as HTML.
        style: CSS beside the common one.
    """
    title = html.escape(title)
    head = f"<title>{title}</title><style>{_STYLE}{style}</style><h1>{title}</h1>"
    start = "<!doctype html><html lang='en'><meta charset='utf-8'>"
    return "\n".join([start, head, *parts])


def figures_table(title: str, rows: Mapping[str, str]) -> str:
    """Return a heading and a table of names with their values, as text."""
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='number'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<h2>{html.escape(title)}</h2><table>{lines}</table>"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a heading and a table with named columns, as text."""

    def line(kind: str, cells: Sequence[str]) -> str:
        inner = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    lines = "".join(line("td", row) for row in rows)
    return f"<h2>{html.escape(title)}</h2><table>{line('th', columns)}{lines}</table>"


def curve(
    caption: str,
    points: Sequence[tuple[float, float]],
    marks: Mapping[float, str] | None = None,
    width: int = 360,
    height: int = 180,
) -> str:
    """Return a curve above zero, from the first x to the last, as a figure.

    Args:
        caption: text before the first and the last value.
        points: (x, y), x rising; points that are not finite are left out.
        marks: vertical lines with their tooltips, by x.
        width: in pixels.
        height: in pixels.
    """
    points = [(x, y) for x, y in points if math.isfinite(y)]
    top = max((y for _, y in points), default=1.0) or 1.0
    first, last = (points[0][0], points[-1][0]) if points else (0.0, 1.0)
    base, inner = height - _MARGIN, width - 2 * _MARGIN

    def across(x: float) -> float:
        return _MARGIN + inner * (x - first) / ((last - first) or 1)

    line = " ".join(
        f"{across(x):.1f},{base - (height - 2 * _MARGIN) * y / top:.1f}" for x, y in points
    )
    drawn = "".join(
        f"<line x1='{across(x):.1f}' x2='{across(x):.1f}' y1='{_MARGIN}' y2='{base}' "
        f"stroke='#b3261e' stroke-dasharray='3 3'><title>{html.escape(text)}</title></line>"
        for x, text in (marks or {}).items()
        if first <= x <= last
    )
    ends = f"{points[0][1]:#.4g} to {points[-1][1]:#.4g}" if points else "no steps"
    return (
        f"<figure><svg width='{width}' height='{height}' role='img'>"
        f"<path d='M{_MARGIN},{_MARGIN} V{base} H{width - _MARGIN}' fill='none' stroke='#b8c0cc'/>"
        f"{drawn}<polyline points='{line}' fill='none' stroke='#2f6fde' stroke-width='1.5'/>"
        f"<text x='4' y='{_MARGIN + 4}' {_TEXT}>{top:.2g}</text>"
        f"<text x='4' y='{base + 4}' {_TEXT}>0</text>"
        f"<text x='{_MARGIN}' y='{height - 12}' {_TEXT}>{first:g}</text>"
        f"<text x='{width - _MARGIN - 24}' y='{height - 12}' {_TEXT}>{last:g}</text>"
        f"</svg><figcaption>{html.escape(caption)}: {ends}</figcaption></figure>"
    )
