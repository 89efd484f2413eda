"""Some samples for people to look at: the same ones in every run, spread over the source."""

import heapq
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from preparation.exclusion import KEY_DIGITS
from preparation.images import thumbnail
from preparation.shards import Place, shard_name

# Of the whole source; each unit keeps as many, as any of them may be among the first.
MOST_SHOWN = 24
_MOST_IMAGES = 6
_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A sample for the report.

    Attributes:
        order: The smallest are shown; it is the sample's key, so it is as good as drawn by lot.
        row: Its number among the accepted samples of its unit.
        text: How its text starts.
        images: Thumbnails as addresses for HTML.
    """

    order: str
    row: int
    text: str
    images: list[str]


class ShownSamples:
    """Keeps the places of those samples of a unit whose keys are the smallest."""

    def __init__(self) -> None:
        # A heap of the largest first, so the one to give up stands at its top.
        self._heap: list[tuple[int, int, str, Place]] = []

    def offer(self, key: str, row: int, text: str, place: Place) -> None:
        """Takes a sample if it is among the first."""
        item = (-int(key, 16), row, text.strip()[:_CHARACTERS], place)
        if len(self._heap) < MOST_SHOWN:
            heapq.heappush(self._heap, item)
        elif item > self._heap[0]:
            heapq.heapreplace(self._heap, item)

    def read(self, folder: Path, unit: str) -> list[Shown]:
        """Reads the samples from the shards of their unit and makes thumbnails.

        Args:
            folder: Where the shards are.
            unit: Starts their names.
        """
        return [
            Shown(
                order=f"{-order:0{KEY_DIGITS}x}",
                row=row,
                text=text,
                images=_thumbnails(folder / shard_name(unit, place.shard), place),
            )
            for order, row, text, place in sorted(self._heap, reverse=True)
        ]


def _thumbnails(shard: Path, place: Place) -> list[str]:
    with shard.open("rb") as stream:
        stream.seek(place.offset)
        members = io.BytesIO(stream.read(place.size))
    with tarfile.open(fileobj=members) as tar:
        names = tar.getnames()[1:][:_MOST_IMAGES]  # the record comes first
        files = [tar.extractfile(name) for name in names]
        return [thumbnail(file.read()) for file in files if file is not None]
