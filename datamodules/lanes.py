"""The order of packed training: lanes, of which each gives one row to every step.

A step has as many rows as the global batch has, and every row of it belongs to one lane, always
the same. The samples 0, 1, 2, ... of the blended order are dealt out to the lanes in blocks of one
for each, shuffled within the block, and each lane packs its own samples. So what a lane gives at a
step depends on the order of samples and on the number of lanes alone: not on how the lanes are
spread over ranks and workers, nor on where a run was stopped. Nobody plans another one's samples.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from datamodules.packing import Room, fill_row
from datamodules.permutation import Permutation


class Planned(Protocol):
    """A sample whose length is known."""

    @property
    def length(self) -> int:
        """Number of positions."""
        ...

    @property
    def tiles(self) -> int:
        """Number of tiles of all images."""
        ...


PlannedSample = TypeVar("PlannedSample", bound=Planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """Where a lane stands, in plain numbers.

    Attributes:
        rows: Rows that it has given.
        drawn: Samples that it has drawn.
        waiting: Of these, which wait in the buffer (counted from 0 by the lane), the oldest first.
    """

    rows: int = 0
    drawn: int = 0
    waiting: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Lane(Generic[PlannedSample]):
    """One lane.

    Attributes:
        number: Of the lane, from 0.
        lanes: How many there are.
        seed: Chooses the shuffling of the blocks.
        buffer_size: Samples that a row is chosen from.
        room: Of a row.
        plan: Plans the sample with a global number.
        state: Where to begin.
    """

    number: int
    lanes: int
    seed: int
    buffer_size: int
    room: Room
    plan: Callable[[int], PlannedSample]
    state: LaneState = field(default_factory=LaneState)

    def __post_init__(self) -> None:
        self._buffer = [self._draw(turn) for turn in self.state.waiting]
        self._turns = list(self.state.waiting)

    def next_row(self) -> list[PlannedSample]:
        """Returns the samples of the next row, in the order in which they were drawn."""
        drawn = self.state.drawn
        while len(self._buffer) < self.buffer_size:
            self._buffer.append(self._draw(drawn))
            self._turns.append(drawn)
            drawn += 1
        chosen = fill_row(
            [sample.length for sample in self._buffer],
            [sample.tiles for sample in self._buffer],
            self.room,
        )
        row = [self._buffer[number] for number in chosen]
        for number in reversed(chosen):
            del self._buffer[number]
            del self._turns[number]
        self.state = LaneState(rows=self.state.rows + 1, drawn=drawn, waiting=tuple(self._turns))
        return row

    def sample_number(self, turn: int) -> int:
        """Returns the global number of the sample that this lane draws at a turn, from 0."""
        block = Permutation(self.lanes, self.seed, self.lanes, turn)
        return turn * self.lanes + block[self.number]

    def _draw(self, turn: int) -> PlannedSample:
        return self.plan(self.sample_number(turn))
