"""From a source to a folder of shards that training and Energon read.

    pieces -> units -> (read, filter, write: one process per unit) -> finished units
           -> duplicates decided over all units -> shards in place -> .nv-meta -> report

Everything before `report.json` can be stopped at any moment and begun again: a unit is renamed
when it is whole, and each later step gives the same result when it is repeated.
"""

import errno
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from preparation.energon_folder import write_meta
from preparation.exclusion import Exclusions
from preparation.options import PrepareOptions
from preparation.placing import AllSamples, ShardOrder, place_shards, shard_counts, shard_orders
from preparation.pool import WorkerDied, make_units
from preparation.progress import ProgressLine
from preparation.report import render
from preparation.shards import synchronise
from preparation.source import FormatRow
from preparation.statistics import Statistics
from preparation.tokens import TokenCounter
from preparation.unit_result import UnitResult
from preparation.units import Unit, describe_units, group_pieces, piece_name
from preparation.work_folder import REPORT_FILE, WorkFolder, replace_file

_EXAMPLES = 3
_FULL = (errno.ENOSPC, errno.EDQUOT)


class PreparationFailed(RuntimeError):  # noqa: N818 - the name says it
    """The work could not be done; what is done of it is kept."""


@dataclass(frozen=True, slots=True)
class TaskNumber:
    """One of several runs that share an output folder.

    Attributes:
        index: From 0.
        count: Of all of them.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "TaskNumber":
        """Reads `3/8`.

        Raises:
            ValueError: It is not of this form, or the number is not below the count.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"task: {text!r} is not I/N with I from 0 to N-1, as 0/8.")
        return cls(int(index), int(count))


class Preparation:
    """One request.

    Args:
        row: The format of the source.
        options: The request.
        stream: Where progress is shown.

    Raises:
        ValueError: The source cannot be used.
    """

    def __init__(
        self, row: FormatRow, options: PrepareOptions, stream: TextIO | None = None
    ) -> None:
        self._row = row
        self._options = options
        self._stream = sys.stderr if stream is None else stream
        self._work = WorkFolder(options.out)
        self._what_counts = options.what_counts()
        self._exclusions = Exclusions(options.exclude, options.source)
        TokenCounter(options.tokenizer)  # refuses here what no process could read

    def is_finished(self) -> bool:
        """Tells whether the output folder holds all that is asked for.

        Raises:
            ValueError: It was made with other options.
        """
        return self._work.finished_report(self._what_counts) is not None

    def open(self) -> list[Unit]:
        """Lists what there is to do, and begins or takes up the output folder.

        Raises:
            ValueError: The source or the folder cannot be used.
        """
        reader = self._row.make(self._options.source, self._options.reader)
        units = group_pieces(reader.pieces(), self._options.shard_bytes)
        if not units:
            raise ValueError(f"source: {self._options.source} holds nothing to read.")
        self._work.open(self._what_counts, describe_units(units, self._options.source))
        return units

    def run(self, task: TaskNumber | None = None, finish_only: bool = False) -> dict[str, Any]:
        """Does the work, or goes on with it.

        Args:
            task: Make only the units of this task; the last phase is for `finish_only`.
            finish_only: Only do the last phase.

        Returns:
            Figures.

        Raises:
            ValueError: The request cannot work.
            PreparationFailed: The disk is full, or a process died.
        """
        report = self._work.finished_report(self._what_counts)
        if report is not None:
            self._work.remove()
            return _figures(self._options.out, report) | {"already_finished": True}
        units = self.open()
        try:
            with self._work.lock(exclusive=task is None):
                if not finish_only:
                    self._make_units(units, task)
                if task is not None:
                    return {"task": f"{task.index}/{task.count}", "units": len(units)}
                return self._finish(units)
        except WorkerDied as error:
            raise PreparationFailed(str(error)) from error
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise PreparationFailed(
                f"no space is left for {self._options.out}; make room and start again to go on"
            ) from error

    def _make_units(self, units: Sequence[Unit], task: TaskNumber | None) -> None:
        mine = units if task is None else units[task.index :: task.count]
        self._work.remove_partial_units({unit.name for unit in mine})
        done = self._work.finished_units()
        todo = [unit for unit in mine if unit.name not in done]
        total = sum(unit.size_bytes for unit in todo)
        self._check_space(total)
        line = ProgressLine(self._stream, total)
        try:
            make_units(todo, self._row, self._options, self._exclusions, self._work.units, line)
        finally:
            line.end()

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._options.out).free
        if self._options.check_free_space and needed > free:
            raise ValueError(
                f"out: {self._options.out} has {free / 1e9:.1f} GB free, and up to "
                f"{needed / 1e9:.1f} GB are to be read; make room, or give --no-space-check if the "
                f"filters leave enough out."
            )

    def _finish(self, units: Sequence[Unit]) -> dict[str, Any]:
        done = self._work.finished_units()
        missing = [unit.name for unit in units if unit.name not in done]
        if missing:
            raise ValueError(
                f"finish: {len(missing)} of {len(units)} units are missing, the first is "
                f"{missing[0]}; run the tasks that make them first."
            )
        results = [UnitResult(self._work.units / unit.name) for unit in units]
        options = self._options
        samples = AllSamples(results, options.filters.near_duplicate_bits)
        statistics = Statistics(options.tokenizer is not None)
        orders: list[ShardOrder] = []
        for number, (unit, result) in enumerate(zip(units, results, strict=True)):
            summary = result.summary()
            names = [_describe(piece, options.source) for piece in unit.pieces]
            statistics.add_unit(result, summary, samples, number, names)
            kept = samples.kept(number)
            orders += shard_orders(result, unit, summary.shards, kept, options.out)
        counts = shard_counts(orders)
        if not counts:
            raise PreparationFailed(
                f"no sample is left; {statistics.read} were rejected: "
                f"{_in_words(statistics.as_json()['rejected'])}"
            )
        examples = self._write_rejected(samples, len(units))
        place_shards(orders, results, samples, options.jobs)
        splits = write_meta(options.out, counts, options.split, options.jobs, self._work.path)
        self._warn_of_empty_splits(splits)
        return self._write_report(statistics, examples, counts, splits)

    def _write_rejected(self, samples: AllSamples, units: int) -> dict[str, list[dict[str, str]]]:
        examples: dict[str, list[dict[str, str]]] = {}
        partial = self._work.path / "rejected.jsonl"
        with partial.open("w", encoding="utf-8") as stream:
            for unit in range(units):
                for line in samples.rejected_lines(unit):
                    stream.write(line)
                    entry = json.loads(line)
                    shown = examples.setdefault(entry["reason"], [])
                    if len(shown) < _EXAMPLES:
                        shown.append({"key": entry["key"], "message": entry["message"]})
        synchronise(partial)
        partial.replace(self._options.out / "rejected.jsonl")
        return examples

    def _warn_of_empty_splits(self, splits: dict[str, list[str]]) -> None:
        for (name, shards), share in zip(splits.items(), self._options.split, strict=False):
            if share and not shards:
                self._stream.write(
                    f"warning: the split {name} is empty, as there are fewer shards than splits; "
                    f"smaller shards (--shard-size-mb) fill it.\n"
                )

    def _write_report(
        self,
        statistics: Statistics,
        examples: dict[str, list[dict[str, str]]],
        counts: Any,
        splits: dict[str, list[str]],
    ) -> dict[str, Any]:
        out = self._options.out
        split_samples = {
            name: sum(counts[shard] for shard in shards) for name, shards in splits.items()
        }
        size = sum((out / name).stat().st_size for name in counts)
        report = {
            "request": self._what_counts,
            "shards": len(counts),
            "bytes": size,
            "split_samples": split_samples,
            **statistics.as_json(),
            "rejected_examples": examples,
        }
        figures = {
            "format": self._options.format,
            "samples read": statistics.read,
            "samples kept": statistics.kept,
            "images kept": statistics.images,
            "shards": len(counts),
            "bytes": size,
        } | {f"samples of {name}": count for name, count in split_samples.items()}
        page = render(self._options.source.name, figures, statistics, examples)
        aside = self._work.path
        replace_file(out / "report.html", page.encode("utf-8", "backslashreplace"), aside)
        content = json.dumps(report, indent=1) + "\n"
        replace_file(out / REPORT_FILE, content.encode("ascii"), aside)
        synchronise(out)
        self._work.remove()
        return _figures(out, report)


def _describe(piece: Any, source: Path) -> dict[str, Any]:
    return {"file": piece_name(piece, source), "first": piece.first, "stop": piece.stop}


def _in_words(rejected: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in rejected.items()) or "none"


def _figures(out: Path, report: dict[str, Any]) -> dict[str, Any]:
    names = ("samples_read", "samples_kept", "images_kept", "shards", "bytes", "rejected")
    return {"out": str(out)} | {name: report[name] for name in names}
