"""Reads, filters and writes one unit; what it leaves is either whole or absent."""

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preparation.exclusion import Exclusions
from preparation.images import without_pixel_bound
from preparation.judge import Accepted, Judge
from preparation.options import PrepareOptions
from preparation.shards import ShardWriter, synchronise
from preparation.shown import ShownSamples
from preparation.source import FormatRow, RawSample, Reader, Rejected
from preparation.tokens import TokenCounter
from preparation.unit_result import UnitSummary, rejected_file, rejected_line, write_result
from preparation.units import Unit

# Called with numbers of samples, bytes of samples and bytes of pieces since the last call.
Advance = Callable[[int, int, int], None]
_SAMPLES_BETWEEN_REPORTS = 64
PARTIAL = ".partial-"


@dataclass(slots=True)
class _Tally:
    """What is remembered of a unit while it is read."""

    rows: list[tuple[Any, ...]]
    images: list[tuple[Any, ...]]
    keys: list[str]
    licences: dict[str, int]
    shown: ShownSamples


class UnitWorker:
    """Makes units of one request.

    Args:
        row: The format.
        options: The request.
        exclusions: Samples to leave out.
        units_folder: Takes a folder for each finished unit.
    """

    def __init__(
        self, row: FormatRow, options: PrepareOptions, exclusions: Exclusions, units_folder: Path
    ) -> None:
        self._reader: Reader = row.make(options.source, options.reader)
        self._options = options
        self._units_folder = units_folder
        self._judge = Judge(options, exclusions, row.max_tiles, row.licence)
        self._count_tokens = TokenCounter(options.tokenizer)

    def __call__(self, unit: Unit, advance: Advance) -> None:
        """Makes a unit.

        Raises:
            ValueError: The request does not fit the source.
        """
        folder = self._units_folder / f"{unit.name}{PARTIAL}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            with without_pixel_bound():
                self._make(unit, folder, advance)
            for file in folder.iterdir():
                synchronise(file)
            _rename_unless_there(folder, self._units_folder / unit.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make(self, unit: Unit, folder: Path, advance: Advance) -> None:
        options = self._options
        writer = ShardWriter(folder, unit.name, options.shard_bytes, options.samples_per_shard)
        tally = _Tally([], [], [], {}, ShownSamples())
        similarity = _SimilarityCheck(options)
        progress = _Progress(advance)
        pieces: list[dict[str, Any]] = []
        seen: set[str] = set()
        with rejected_file(folder).open("w", encoding="utf-8") as rejected_list:
            for number, piece in enumerate(unit.pieces):
                rejected: Counter[str] = Counter()
                images_left_out: Counter[str] = Counter()
                read = 0
                for raw in self._reader.read(piece):
                    assert raw.key not in seen, f"two records are called {raw.key}"
                    seen.add(raw.key)
                    read += not (isinstance(raw, Rejected) and raw.is_image)
                    result: Accepted | RawSample | Rejected = raw
                    if isinstance(raw, RawSample):
                        progress.add(sum(len(image.data) for image in raw.images))
                        similarity.see(raw)
                        result = self._judge(raw)
                    if isinstance(result, Rejected):
                        counts = images_left_out if result.is_image else rejected
                        counts[result.reason] += 1
                        line = rejected_line(result.key, result.reason, result.message)
                        rejected_list.write(line)
                    else:
                        assert isinstance(result, Accepted)
                        self._write(result, raw.key, number, writer, tally)
                pieces.append(
                    {
                        "read": read,
                        "rejected": dict(sorted(rejected.items())),
                        "images_left_out": dict(sorted(images_left_out.items())),
                    }
                )
                progress.end_piece(piece.size_bytes)
        writer.close()
        similarity.check(unit)
        summary = UnitSummary(
            shards=writer.shards,
            licences=list(tally.licences),
            pieces=pieces,
            shown=tally.shown.read(folder, unit.name),
        )
        write_result(folder, summary, tally.rows, tally.images, tally.keys)

    def _write(
        self, sample: Accepted, key: str, piece: int, writer: ShardWriter, tally: _Tally
    ) -> None:
        place = writer.write(sample.key, sample.parts())
        tally.shown.offer(sample.key, len(tally.rows), sample.text, place)
        licence = str(sample.record.get("licence", ""))
        content = tuple(int.from_bytes(sample.content[at : at + 8], "little") for at in (0, 8))
        tally.rows.append(
            (
                content,
                place.offset,
                place.size,
                place.shard,
                piece,
                len(sample.images),
                tally.licences.setdefault(licence, len(tally.licences)),
                len(sample.text),
                self._count_tokens(sample.text),
            )
        )
        for image in sample.images:
            header = image.header
            is_hashed = image.bits is not None
            tally.images.append(
                (image.bits or 0, is_hashed, len(image.data), header.width, header.height)
            )
        tally.keys.append(key)


class _SimilarityCheck:
    """Refuses a bound for similarities where the source has none."""

    def __init__(self, options: PrepareOptions) -> None:
        self._is_wanted = options.filters.min_similarity is not None
        self._with_images = 0
        self._with_similarity = 0

    def see(self, sample: RawSample) -> None:
        self._with_images += bool(sample.images)
        self._with_similarity += bool(sample.images and sample.similarity)

    def check(self, unit: Unit) -> None:
        if self._is_wanted and self._with_images and not self._with_similarity:
            raise ValueError(
                f"min_similarity: none of the {self._with_images} samples with images from "
                f"{unit.pieces[0].path} on has a similarity."
            )


class _Progress:
    """Gathers what is done, so that it is told now and then only."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._samples = 0
        self._bytes = 0

    def add(self, size: int) -> None:
        self._samples += 1
        self._bytes += size
        if self._samples == _SAMPLES_BETWEEN_REPORTS:
            self._tell(0)

    def end_piece(self, size: int) -> None:
        self._tell(size)

    def _tell(self, piece: int) -> None:
        self._advance(self._samples, self._bytes, piece)
        self._samples = self._bytes = 0


def _rename_unless_there(folder: Path, target: Path) -> None:
    synchronise(folder)
    try:
        os.rename(folder, target)
    except OSError:
        # Another process made the same unit, which has the same bytes.
        if not target.is_dir():
            raise
    synchronise(target.parent)
