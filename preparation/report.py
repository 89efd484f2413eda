"""report.html: one file that shows what is in the shards and what is not."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from preparation.shown import Shown
from preparation.statistics import Histogram, Statistics

_MOST_PIECES = 200
_WIDTH, _HEIGHT, _MARGIN = 420, 150, 26
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto;
       padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse }
td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem } figure { margin: 0 }
figcaption { font-size: 13px; color: #55606e }
.sample { width: 340px; overflow-wrap: anywhere } .sample img { margin: 0 .3rem .3rem 0 }
.sample p { margin: 0; white-space: pre-wrap; font-size: 14px }
svg rect { fill: #2f6fde } svg text { font-size: 11px; fill: #55606e }
"""


def render(
    title: str,
    figures: Mapping[str, Any],
    statistics: Statistics,
    examples: Mapping[str, Sequence[Mapping[str, str]]],
) -> str:
    """Returns the page.

    Args:
        title: Of the page.
        figures: Names and values of its first table.
        statistics: Counts, histograms and samples to show.
        examples: By reason some of the records that were rejected.
    """
    heading = html.escape(title)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{heading}</title><style>{_STYLE}</style><h1>{heading}</h1>",
        _table(("", ""), figures.items()),
        "<h2>Kept</h2><div class='row'>",
        *(_bars(each) for each in statistics.histograms.values()),
        "</div><h2>Licences</h2>",
        _table(("licence", "samples"), sorted(statistics.licences.items())),
        "<h2>Rejected</h2>",
        _rejected(statistics.rejected, examples),
        "<h2>Samples</h2><div class='row'>",
        *(_sample(each) for each in statistics.shown),
        "</div><h2>Pieces of the source</h2>",
        _pieces(statistics.pieces),
        "</html>\n",
    ]
    return "\n".join(parts)


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return f"<td class='number'>{value:,}</td>"
    return f"<td>{html.escape(str(value))}</td>"


def _rejected(
    counts: Mapping[str, int], examples: Mapping[str, Sequence[Mapping[str, str]]]
) -> str:
    rows = []
    for reason in sorted(counts):
        first = True
        for example in examples.get(reason, ()) or ({"key": "", "message": ""},):
            start = (reason, counts[reason]) if first else ("", "")
            rows.append((*start, example["key"], example["message"]))
            first = False
    return _table(("reason", "records", "for example", "message"), rows)


def _pieces(pieces: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            piece["file"],
            piece["first"],
            piece["stop"],
            piece["read"],
            piece["kept"],
            ", ".join(f"{reason} {count:,}" for reason, count in piece["rejected"].items()),
        )
        for piece in pieces[:_MOST_PIECES]
    ]
    table = _table(("file", "first", "stop", "read", "kept", "rejected"), rows)
    more = len(pieces) - len(rows)
    return table + (f"<p>{more:,} more are in report.json.</p>" if more else "")


def _sample(shown: Shown) -> str:
    images = "".join(f"<img alt='' src='{html.escape(address)}'>" for address in shown.images)
    return f"<div class='sample'>{images}<p>{html.escape(shown.text)}</p></div>"


def _bars(histogram: Histogram) -> str:
    filled = [number for number, count in enumerate(histogram.counts) if count]
    title = html.escape(histogram.title)
    if not filled:
        return f"<figure><figcaption>{title}: none</figcaption></figure>"
    first, last = filled[0], filled[-1]
    counts = histogram.counts[first : last + 1].tolist()
    top = max(counts)
    step = (_WIDTH - 2 * _MARGIN) / len(counts)
    base = _HEIGHT - _MARGIN
    bars = []
    for number, count in enumerate(counts):
        height = (base - _MARGIN) * count / top
        name = f"from {histogram.edges[first + number]:,}: {count:,}"
        bars.append(
            f"<rect x='{_MARGIN + number * step:.1f}' y='{base - height:.1f}' "
            f"width='{max(step - 1, 1):.1f}' height='{height:.1f}'><title>{name}</title></rect>"
        )
    mean = histogram.total / histogram.values
    return (
        f"<figure><svg width='{_WIDTH}' height='{_HEIGHT}' role='img'>{''.join(bars)}"
        f"<text x='2' y='{_MARGIN - 8}'>{top:,}</text>"
        f"<text x='{_MARGIN}' y='{_HEIGHT - 8}'>{histogram.edges[first]:,}</text>"
        f"<text x='{_WIDTH - _MARGIN}' y='{_HEIGHT - 8}' text-anchor='end'>"
        f"from {histogram.edges[last]:,}</text></svg>"
        f"<figcaption>{title}: {histogram.smallest:,} to {histogram.largest:,}, "
        f"mean {mean:,.1f}</figcaption></figure>"
    )
