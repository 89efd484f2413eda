"""Which samples share a row: the oldest of a buffer, and those that fill the rest of it best.

Lengths are whole numbers of a few thousand at most, so the best company is found exactly: bit p of
an integer says that some of the samples looked at so far fill p positions together, and one more
sample shifts it. That fills rows better than first-fit-decreasing over a buffer of the same size,
in about the same time, and the oldest sample never waits (docs/decisions/0007-packing.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What fits into a row.

    Attributes:
        positions: Of text and images.
        tiles: Tiles of all images, or None for no bound.
    """

    positions: int
    tiles: int | None = None


def fill_row(lengths: Sequence[int], tiles: Sequence[int], room: Room) -> list[int]:
    """Chooses the samples of the next row: the first of all, and the best company for it.

    Args:
        lengths: Positions of each sample, the oldest first; each of them has room by itself.
        tiles: Tiles of each sample.
        room: Of the row.

    Returns:
        The numbers of the samples, in ascending order; 0 is always one of them.
    """
    candidates = list(range(1, len(lengths)))
    while True:
        row = [0, *_best_company(candidates, lengths, room)]
        if room.tiles is None or sum(tiles[number] for number in row) <= room.tiles:
            return row
        # Too many tiles: without the chosen sample that has most, there is other company.
        assert len(row) > 1, f"{tiles[0]} tiles in rows of {room.tiles}"
        candidates.remove(max(row[1:], key=lambda number: (tiles[number], number)))


def _best_company(candidates: Sequence[int], lengths: Sequence[int], room: Room) -> list[int]:
    """Returns the candidates, in ascending order, that leave the least of the row empty."""
    free = room.positions - lengths[0]
    assert free >= 0, f"{lengths[0]} positions in rows of {room.positions}"
    mask = (1 << (free + 1)) - 1
    reachable = [1]
    company = [number for number in candidates if lengths[number] <= free]
    for number in company:
        reachable.append((reachable[-1] | reachable[-1] << lengths[number]) & mask)
        # The rest is newer; of equally good companies the older one is taken.
        if reachable[-1] >> free:
            break
    left = reachable[-1].bit_length() - 1
    taken = []
    for step in range(len(reachable) - 1, 0, -1):
        if not reachable[step - 1] >> left & 1:
            taken.append(company[step - 1])
            left -= lengths[company[step - 1]]
    assert left == 0
    return taken[::-1]
