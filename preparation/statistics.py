"""Counts and histograms of what was kept, unit by unit, in bounded memory."""

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from preparation.placing import AllSamples
from preparation.shown import MOST_SHOWN, Shown
from preparation.unit_result import UnitResult, UnitSummary

# Edges that double, with halves between: one row of bars serves a caption and a book.
_EDGES = sorted({int(base * 2**power) for power in range(24) for base in (1.0, 1.5)})


class Histogram:
    """Counts values between fixed edges.

    Args:
        title: What is counted.
        edges: The lower edge of each bar; the last one has no end.
    """

    def __init__(self, title: str, edges: Sequence[int]) -> None:
        self.title = title
        self.edges = list(edges)
        self.counts = np.zeros(len(edges), np.int64)
        self.total = 0
        self.values = 0
        self.largest: int | None = None
        self.smallest: int | None = None

    def add(self, values: np.ndarray) -> None:
        """Counts values."""
        if not len(values):
            return
        bars = np.searchsorted(self.edges, values, side="right") - 1
        self.counts += np.bincount(np.maximum(bars, 0), minlength=len(self.edges))
        self.total += int(values.sum(dtype=np.int64))
        self.values += len(values)
        low, high = int(values.min()), int(values.max())
        self.smallest = low if self.smallest is None else min(self.smallest, low)
        self.largest = high if self.largest is None else max(self.largest, high)

    def as_json(self) -> dict[str, Any]:
        """Returns the bars that are not empty, by their lower edge, and the moments."""
        bars = {
            str(edge): int(count)
            for edge, count in zip(self.edges, self.counts, strict=True)
            if count
        }
        return {
            "count": self.values,
            "sum": self.total,
            "smallest": self.smallest,
            "largest": self.largest,
            "bars": bars,
        }


class Statistics:
    """Gathers what the report shows.

    Args:
        has_tokens: Whether tokens were counted.
    """

    def __init__(self, has_tokens: bool) -> None:
        doubling = [0, *_EDGES]
        self.histograms = {
            "image_width": Histogram("Image width, pixels", doubling),
            "image_height": Histogram("Image height, pixels", doubling),
            "images_per_sample": Histogram("Images per sample", [*range(17), *(24, 32, 64, 128)]),
            "text_characters": Histogram("Text, characters", doubling),
            "sample_bytes": Histogram("Sample in the shard, bytes", doubling),
        }
        if has_tokens:
            self.histograms["text_tokens"] = Histogram("Text, tokens", doubling)
        self.read = 0
        self.kept = 0
        self.images = 0
        self.rejected: Counter[str] = Counter()
        self.images_left_out: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self.pieces: list[dict[str, Any]] = []
        self.shown: list[Shown] = []

    def add_unit(
        self,
        result: UnitResult,
        summary: UnitSummary,
        samples: AllSamples,
        unit: int,
        pieces: Sequence[dict[str, Any]],
    ) -> None:
        """Counts a unit.

        Args:
            result: What it left.
            summary: Its counts.
            samples: What of it stays.
            unit: Its number.
            pieces: Names of its pieces, as the report gives them.
        """
        kept = samples.kept(unit)
        rows = result.rows()
        dropped: list[Counter[str]] = [Counter() for _ in pieces]
        for row, reason in samples.dropped(unit):
            dropped[rows["piece"][row]][reason] += 1
        for name, counts, more in zip(pieces, summary.pieces, dropped, strict=True):
            rejected = Counter(counts["rejected"]) + more
            kept_here = counts["read"] - rejected.total()
            left_out = counts["images_left_out"]
            entry = {"read": counts["read"], "kept": kept_here, "rejected": _sorted(rejected)}
            self.pieces.append(name | entry | {"images_left_out": left_out})
            self.read += counts["read"]
            self.kept += kept_here
            self.rejected += rejected
            self.images_left_out += Counter(left_out)
        self._add_rows(rows[kept], summary)
        pictures = result.images()[np.repeat(kept, rows["images"])]
        self.images += len(pictures)
        self.histograms["image_width"].add(pictures["width"])
        self.histograms["image_height"].add(pictures["height"])
        here = [each for each in summary.shown if kept[each.row]]
        self.shown = heapq.nsmallest(MOST_SHOWN, [*self.shown, *here], key=_order)

    def _add_rows(self, rows: np.ndarray, summary: UnitSummary) -> None:
        self.histograms["images_per_sample"].add(rows["images"])
        self.histograms["text_characters"].add(rows["characters"])
        self.histograms["sample_bytes"].add(rows["size"])
        if "text_tokens" in self.histograms:
            self.histograms["text_tokens"].add(rows["tokens"])
        for number, count in enumerate(np.bincount(rows["licence"]).tolist()):
            if count:
                self.licences[summary.licences[number] or "not stated"] += count

    def as_json(self) -> dict[str, Any]:
        """Returns all but the samples shown."""
        return {
            "samples_read": self.read,
            "samples_kept": self.kept,
            "images_kept": self.images,
            "rejected": _sorted(self.rejected),
            "images_left_out": _sorted(self.images_left_out),
            "licences": _sorted(self.licences),
            "histograms": {name: each.as_json() for name, each in self.histograms.items()},
            "pieces": self.pieces,
        }


def _order(shown: Shown) -> str:
    return shown.order


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts)}
