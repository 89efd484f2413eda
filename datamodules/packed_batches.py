"""Packed micro-batches of one rank, which bring along where their lanes stand."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.bad_samples import BadSampleLog
from datamodules.collate import Encoded
from datamodules.dataset import ENDLESS, FILLER_KEY, PlannedSample, TrainingSamples
from datamodules.lanes import Lane, LaneState
from datamodules.packing import Room
from datamodules.row_decoding import Decoding, decode_row
from datamodules.sample_encoder import Collator

LaneStates = dict[int, LaneState]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingSettings:
    """How rows are packed and spread.

    Attributes:
        rows_per_step: Rows of a step over all ranks, and so the number of lanes.
        rows_per_micro_batch: Rows of a micro-batch.
        rank: This one among those that read different samples.
        ranks: How many these are.
        buffer_size: Samples that a row is chosen from.
        room: Of a row.
        seed: Chooses the order.
    """

    rows_per_step: int
    rows_per_micro_batch: int
    rank: int
    ranks: int
    buffer_size: int
    room: Room
    seed: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one rank in a step."""
        return self.rows_per_step // (self.rows_per_micro_batch * self.ranks)

    def lanes(self, micro_batch: int) -> range:
        """Returns the lanes of this rank's micro-batch of a step, counted from 0."""
        first = (micro_batch * self.ranks + self.rank) * self.rows_per_micro_batch
        return range(first, first + self.rows_per_micro_batch)


class PackedStream(IterableDataset):
    """What one worker reads: pairs of the states of the lanes after it, and a micro-batch.

    Worker w of n makes the micro-batches w, w + n, ... of the rank, as PyTorch asks for them. Where
    that takes it through several workers' lanes, it plans all of their rows, and decodes its own.

    Args:
        samples: What is packed.
        collate: Makes micro-batches.
        settings: How.
        states: Where each lane begins; those that are missing begin at the beginning.
        decode_log: Takes the samples whose images are damaged; those that cannot be planned go to
            the log of `samples`, so that "in a row" means something in each.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        collate: Collator,
        settings: PackingSettings,
        states: Mapping[int, LaneState],
        decode_log: BadSampleLog,
    ) -> None:
        self.samples = samples
        self.collate = collate
        self.settings = settings
        self.states = states
        self.decode_log = decode_log

    def __iter__(self) -> Iterator[tuple[LaneStates, dict[str, Any]]]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        lanes: dict[int, Lane[PlannedSample]] = {}
        for number in count(first, every):
            step, micro_batch = divmod(number, self.settings.micro_batches)
            rows, after = [], {}
            for lane_number in self.settings.lanes(micro_batch):
                if lane_number not in lanes:
                    lanes[lane_number] = self._lane(lane_number)
                lane = lanes[lane_number]
                rows.append(self._decode(self._row(lane, step)))
                after[lane_number] = lane.state
            yield after, self.collate.packed(rows)

    def _decode(self, row: Sequence[PlannedSample]) -> list[Encoded]:
        decodings = (
            Decoding(
                key=sample.plan.key, source=sample.source.name, decode=partial(self._read, sample)
            )
            for sample in row
        )
        filler = partial(self.samples.encoder.filler, FILLER_KEY)
        return decode_row(decodings, self.decode_log, filler)

    def _read(self, sample: PlannedSample) -> Encoded:
        with self.samples.watch.reading(sample.plan.key, sample.source.name):
            return sample.decode(self.samples.encoder)

    def _row(self, lane: Lane[PlannedSample], step: int) -> list[PlannedSample]:
        """Takes the lane to a step, counted from where this stream began."""
        start = self.states.get(lane.number, LaneState()).rows
        while lane.state.rows < start + step:
            lane.next_row()
        return lane.next_row()

    def _lane(self, number: int) -> Lane[PlannedSample]:
        return Lane(
            number=number,
            lanes=self.settings.rows_per_step,
            seed=self.settings.seed,
            buffer_size=self.settings.buffer_size,
            room=self.settings.room,
            plan=self.samples.plan,
            state=self.states.get(number, LaneState()),
        )


class PackedBatches:
    """The endless packed micro-batches of one rank; asking for its iterator again goes on.

    Args:
        stream: Of the rank.
        num_workers: Worker processes; 0 works in this one.
        pin_memory: Whether tensors are pinned.
    """

    deals_by_itself = True

    def __init__(self, stream: PackedStream, *, num_workers: int, pin_memory: bool) -> None:
        self._stream = stream
        self._loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_as_is,
            pin_memory=pin_memory,
        )
        self._iterator: Iterator[tuple[LaneStates, dict[str, Any]]] | None = None
        self._read = 0
        # A checkpoint counts whole steps, while the next one may have begun.
        self._recent: deque[LaneStates] = deque(maxlen=2 * stream.settings.micro_batches + 2)

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> "PackedBatches":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._iterator is None:
            self._iterator = iter(self._loader)
        after, batch = next(self._iterator)
        self._recent.append(after)
        self._read += 1
        return batch

    def states_after(self, steps: int) -> LaneStates:
        """Returns where the lanes of this rank stood after so many steps of this object."""
        settings = self._stream.settings
        own = [lane for number in range(settings.micro_batches) for lane in settings.lanes(number)]
        if steps == 0:
            return {lane: self._stream.states.get(lane, LaneState()) for lane in own}
        back = self._read - steps * settings.micro_batches
        recent = list(self._recent)
        last = recent[len(recent) - back - settings.micro_batches : len(recent) - back]
        states = {lane: state for after in last for lane, state in after.items()}
        assert sorted(states) == sorted(own), f"the lanes after {steps} steps are not remembered"
        return states


def _as_is(item: Any) -> Any:
    return item
