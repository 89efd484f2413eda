"""From finished units to the shards of the output folder, without what is dropped."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preparation.duplicates import NOT_DROPPED, Decision, decide
from preparation.pool import run_all
from preparation.reasons import RejectionReason
from preparation.shards import copy_samples, shard_name
from preparation.unit_result import UnitResult, rejected_line
from preparation.units import Unit

# The other sample that a message names lies in any unit; so many lists are kept at hand.
_LISTS_AT_HAND = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOrder:
    """A shard that is brought to its place.

    Attributes:
        source: As its unit wrote it.
        target: Its place.
        unit: Number of its unit.
        shard: Its number in the unit.
        samples: How many stay in it.
        is_whole: Whether all stay.
    """

    source: Path
    target: Path
    unit: int
    shard: int
    samples: int
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """A shard that loses samples on its way.

    Attributes:
        source: As its unit wrote it.
        target: Its place.
        places: Offset and size of each sample that stays, [samples, 2].
    """

    source: Path
    target: Path
    places: np.ndarray


class AllSamples:
    """The samples of all units as one list of numbers.

    Args:
        results: The units in the order of the source.
        bits: How many bits make near duplicates, or None.
    """

    def __init__(self, results: Sequence[UnitResult], bits: int | None) -> None:
        self._results = results
        contents, images, hashes, is_hashed = [], [], [], []
        for result in results:
            rows = result.rows()
            contents.append(rows["content"])
            if bits is not None:
                pictures = result.images()
                images.append(rows["images"])
                hashes.append(pictures["hash"])
                is_hashed.append(pictures["is_hashed"])
        self.starts = np.cumsum([0, *map(len, contents)])
        compared = () if bits is None else (np.concatenate(hashes), np.concatenate(is_hashed))
        counts = np.concatenate(images) if images else np.zeros(0, np.uint16)
        self._decision: Decision = decide(
            np.concatenate(contents), counts.astype(np.int64), compared, bits
        )
        self._dropped = self._decision.dropped()
        self._keys: dict[int, list[str]] = {}

    def kept(self, unit: int) -> np.ndarray:
        """Tells for each row of a unit whether it stays."""
        return ~self._dropped[self.starts[unit] : self.starts[unit + 1]]

    def dropped(self, unit: int) -> Iterator[tuple[int, RejectionReason]]:
        """Lists the rows of a unit that go."""
        start = int(self.starts[unit])
        for row in np.flatnonzero(~self.kept(unit)):
            is_exact = self._decision.exact[start + row] != NOT_DROPPED
            reason = RejectionReason.DUPLICATE if is_exact else RejectionReason.NEAR_DUPLICATE
            yield int(row), reason

    def rejected_lines(self, unit: int) -> Iterator[str]:
        """Lists all records of a unit that are in no shard."""
        yield from self._results[unit].rejected()
        start = int(self.starts[unit])
        for row, reason in self.dropped(unit):
            number = start + row
            if reason is RejectionReason.DUPLICATE:
                first = self._key(int(self._decision.exact[number]))
                message = f"It has the same text and images as {first}."
            else:
                first = self._key(int(self._decision.near[number]))
                message = f"It has the same pictures as {first}."
            yield rejected_line(self._key(number), reason, message)

    def _key(self, number: int) -> str:
        unit = int(np.searchsorted(self.starts, number, side="right")) - 1
        if unit not in self._keys:
            if len(self._keys) == _LISTS_AT_HAND:
                del self._keys[next(iter(self._keys))]
            self._keys[unit] = self._results[unit].keys()
        return self._keys[unit][number - int(self.starts[unit])]


def shard_orders(
    result: UnitResult, unit: Unit, shards: int, kept: np.ndarray, out: Path
) -> list[ShardOrder]:
    """Says what becomes of the shards of a unit.

    Args:
        result: What the unit left.
        unit: The unit.
        shards: How many it wrote.
        kept: For each of its rows whether it stays.
        out: The output folder.
    """
    shard_of_row = result.rows()["shard"]
    before = np.bincount(shard_of_row, minlength=shards)
    after = np.bincount(shard_of_row[kept], minlength=shards)
    return [
        ShardOrder(
            source=result.folder / shard_name(unit.name, shard),
            target=out / shard_name(unit.name, shard),
            unit=unit.number,
            shard=shard,
            samples=int(after[shard]),
            is_whole=bool(before[shard] == after[shard]),
        )
        for shard in range(shards)
    ]


def place_shards(
    orders: Sequence[ShardOrder], results: Sequence[UnitResult], samples: AllSamples, jobs: int
) -> None:
    """Brings shards to their places; may be stopped and done again at any point.

    Args:
        orders: All shards.
        results: What their units left.
        samples: What stays.
        jobs: Processes that write shards which lose samples.
    """
    for order in orders:
        if order.is_whole and order.source.exists():
            os.rename(order.source, order.target)
    lossy = (order for order in orders if not order.is_whole)
    run_all(_rewrite, _rewritings(lossy, results, samples), jobs)


def shard_counts(orders: Sequence[ShardOrder]) -> Mapping[str, int]:
    """Counts the samples of each shard that there is."""
    return {order.target.name: order.samples for order in orders if order.samples}


def _rewritings(
    orders: Iterable[ShardOrder], results: Sequence[UnitResult], samples: AllSamples
) -> Iterator[Rewriting]:
    for order in orders:
        if order.samples and not order.target.exists():
            rows = results[order.unit].rows()
            stays = rows[samples.kept(order.unit) & (rows["shard"] == order.shard)]
            places = np.stack([stays["offset"], stays["size"]], axis=1)
            yield Rewriting(source=order.source, target=order.target, places=places)
        else:
            order.source.unlink(missing_ok=True)


def _rewrite(order: Rewriting) -> None:
    partial = order.source.with_suffix(".rewritten")
    copy_samples(order.source, partial, order.places.tolist())
    os.rename(partial, order.target)
    order.source.unlink()
