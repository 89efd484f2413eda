"""Packing inside of Energon: a buffer of planned samples, of which every row takes some.

Energon's own packing stage empties its buffer before it fills it again, so the last rows of every
buffer are poor. This one fills the buffer before every row. Its state is what Energon's buffers
keep of a sample: where in the shards it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.energon import SavableDataset, WorkerConfig
from megatron.energon.wrappers.base import (
    BaseSingleWrapperDataset,
    BaseSingleWrapperMergedState,
    BaseSingleWrapperState,
)
from megatron.energon.wrappers.buffer import (
    SampleBufferMergedState,
    SampleBufferState,
    SavableSampleBuffer,
)

from datamodules.encoder import EncodingPlan
from datamodules.energon_images import ShardImages
from datamodules.packing import Room, fill_row


@dataclass(slots=True, kw_only=True)
class ShardPlan:
    """A sample of a shard whose length is known, and whose images are not decoded.

    Attributes:
        plan: The plan.
        images: The bytes of its images.
        source: The data set that it came from.
        __restore_key__: Where Energon finds it again.
    """

    plan: EncodingPlan
    images: ShardImages
    source: str
    __restore_key__: tuple[Any, ...]


@dataclass
class RowState(BaseSingleWrapperState):
    """State of one worker."""

    buffer: SampleBufferState


@dataclass
class RowMergedState(BaseSingleWrapperMergedState):
    """States of all workers of a rank."""

    buffer: SampleBufferMergedState


class RowPacking(BaseSingleWrapperDataset):
    """Rows of samples from an endless data set of `ShardPlan`.

    Args:
        dataset: The plans.
        buffer_size: Samples that a row is chosen from.
        room: Of a row.
        decode: Makes what is collated of the samples of a row.
        worker_config: The same as of the data set.
    """

    def __init__(
        self,
        dataset: SavableDataset,
        buffer_size: int,
        room: Room,
        decode: Callable[[Sequence[ShardPlan]], Any],
        *,
        worker_config: WorkerConfig,
    ) -> None:
        super().__init__(dataset, worker_config=worker_config)
        self.buffer_size = buffer_size
        self.room = room
        self.decode = decode
        self._buffer = SavableSampleBuffer(dataset, worker_config=worker_config)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        self._buffer.worker_start()
        samples = iter(self.dataset)
        while True:
            while len(self._buffer) < self.buffer_size:
                self._buffer.append(next(samples))
            plans = [sample.plan for sample in self._buffer]
            chosen = fill_row(
                [plan.length for plan in plans], [plan.tiles for plan in plans], self.room
            )
            row = [self._buffer[number] for number in chosen]
            for number in reversed(chosen):
                del self._buffer[number]
            yield self.decode(row)

    def save_state(self) -> RowState:
        """Returns the state of this worker."""
        return RowState.extend(super().save_state(), buffer=self._buffer.save_state())

    def merge_states(self, states: Sequence[RowState | None]) -> RowMergedState:  # type: ignore[override]
        """Joins the states of the workers."""
        buffers = [None if state is None else state.buffer for state in states]
        return RowMergedState.extend(
            super().merge_states(states), buffer=self._buffer.merge_states(buffers)
        )

    def restore_state(self, state: RowMergedState | None) -> None:  # type: ignore[override]
        """Sets all workers to their states."""
        super().restore_state(state)
        self._buffer.restore_state(None if state is None else state.buffer)

    def can_restore_sample(self) -> bool:
        """Rows are never asked for again."""
        return False

    def assert_can_restore(self) -> None:
        """Energon asks this of the samples of a buffer; rows are in none."""
        raise AssertionError("rows cannot be restored")

    def config(self) -> dict[str, Any]:
        """Describes the stage."""
        return {
            "type": type(self).__qualname__,
            "buffer_size": self.buffer_size,
            "room": [self.room.positions, self.room.tiles],
            "dataset": self.dataset.config(),
        }
