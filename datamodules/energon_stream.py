"""Loaders over Energon data sets whose place can be told after every micro-batch.

Energon's own savable loader asks its workers for their state when it is to be saved. In version
5.2.0 it takes a worker that has given nothing yet for one that has given its first batch, cannot
merge the state of a worker that has not begun, and with three or more workers starts at the wrong
one. Here every micro-batch brings the state after it along, so that the place is known at any time,
for any earlier micro-batch too, and a resumed run reads nothing twice.
"""

import gc
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron.energon import SavableDataset, WorkerConfig
from megatron.energon.epathlib import EPath
from torch.utils.data import DataLoader, IterableDataset

from datamodules.dataset import ENDLESS
from datamodules.read_watch import ReadWatch

_END = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingPlace:
    """Where one rank stands.

    Attributes:
        next_worker: The worker that gives the next micro-batch.
        states: The state of each worker's data set, pickled.
    """

    next_worker: int
    states: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedWatch:
    """What ends reads that hang, and the data sets that are read."""

    watch: ReadWatch
    source: str


class ShardStream(IterableDataset):
    """What one worker reads: triples of its number, its state after the item, and a micro-batch.

    With states the first item of each worker is its state at the start, without a micro-batch.

    Args:
        dataset: Energon's data set, of micro-batches.
        first_worker: The worker that comes first.
        with_states: Whether to give states.
        watch: Ends reads that hang.
    """

    def __init__(
        self,
        dataset: SavableDataset,
        *,
        first_worker: int = 0,
        with_states: bool = False,
        watch: NamedWatch,
    ) -> None:
        self.dataset = dataset
        self.watch = watch
        self.first_worker = first_worker
        self.with_states = with_states

    def __iter__(self) -> Iterator[tuple[int, bytes, Any]]:
        config: WorkerConfig = self.dataset.worker_config
        workers = max(1, config.num_workers)
        if config.num_workers:
            # PyTorch always begins with its worker 0; Energon subtracts this from that number. It
            # belongs to the process, and this is a process of its own.
            WorkerConfig.worker_id_offset = (workers - self.first_worker) % workers
        worker = config.rank_worker_id()
        if self.with_states:
            yield worker, self._state(), None
        batches = iter(self.dataset)
        number = 0
        while True:
            config.worker_activate(number)
            name = f"micro-batch {number} of worker {worker}"
            try:
                with self.watch.watch.reading(name, self.watch.source):
                    batch = next(batches, _END)
            finally:
                config.worker_deactivate()
            if batch is _END:
                return
            number += 1
            yield worker, self._state() if self.with_states else b"", batch

    def _state(self) -> bytes:
        return pickle.dumps(self.dataset.save_state())


def _as_is(item: Any) -> Any:
    return item


def _start_worker(_worker: int) -> None:
    # What was there before the fork is not ours to collect; walking it would copy its pages.
    gc.freeze()
    EPath.prepare_forked_process()


def _items(stream: ShardStream, pin_memory: bool) -> Iterator[tuple[int, bytes, Any]]:
    workers = stream.dataset.worker_config.num_workers
    options: dict[str, Any] = {"multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        **options,
    )
    return iter(loader)


class TrainingBatches:
    """The endless micro-batches of one rank; asking for its iterator again goes on, not back.

    Args:
        dataset: Energon's data set of micro-batches.
        pin_memory: Whether tensors are pinned.
        remembered: For so many micro-batches back `place_after` can be asked.
        start: Where to begin; None begins at the beginning.
        watch: Ends reads that hang.

    Raises:
        ValueError: The data set cannot be set to `start`.
    """

    deals_by_itself = True

    def __init__(
        self,
        dataset: SavableDataset,
        *,
        pin_memory: bool,
        remembered: int,
        start: ReadingPlace | None = None,
        watch: NamedWatch,
    ) -> None:
        self._dataset = dataset
        self._watch = watch
        self._pin_memory = pin_memory
        self._start = start
        self._read = 0
        self._places: deque[ReadingPlace | None] = deque([start], maxlen=remembered + 1)
        self._stream: Iterator[tuple[int, bytes, Any]] | None = None
        if start is not None:
            restore(dataset, start)

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._stream is None:
            self._stream = self._begin()
        worker, state, batch = next(self._stream)
        last = self._places[-1]
        assert last is not None
        assert last.next_worker == worker, f"worker {worker} out of turn"
        states = (*last.states[:worker], state, *last.states[worker + 1 :])
        self._places.append(
            ReadingPlace(next_worker=(worker + 1) % len(states), states=states),
        )
        self._read += 1
        return batch

    def place_after(self, micro_batches: int) -> ReadingPlace | None:
        """Returns the place after so many micro-batches; None is the beginning of the data."""
        back = self._read - micro_batches
        assert 0 <= back < len(self._places), (
            f"the place after {micro_batches} micro-batches is asked for, after {self._read}"
        )
        return self._places[-1 - back]

    def _begin(self) -> Iterator[tuple[int, bytes, Any]]:
        first = 0 if self._start is None else self._start.next_worker
        stream = _items(
            ShardStream(self._dataset, first_worker=first, with_states=True, watch=self._watch),
            self._pin_memory,
        )
        workers = max(1, self._dataset.worker_config.num_workers)
        states = dict(next(stream)[:2] for _ in range(workers))
        assert sorted(states) == list(range(workers)), f"workers {sorted(states)} of {workers}"
        self._places[-1] = ReadingPlace(
            next_worker=first, states=tuple(states[worker] for worker in range(workers))
        )
        return stream


class EvaluationBatches:
    """Every sample of one rank's part once, from the start at every pass.

    Ranks differ in how many samples they have, but all of them must take part in as many steps; so
    every rank gives `length` micro-batches, the last ones fillers.

    Args:
        dataset: Energon's data set of micro-batches.
        length: Number of micro-batches, no fewer than the data set gives.
        filler: Makes a filler micro-batch.
        pin_memory: Whether tensors are pinned.
        watch: Ends reads that hang.
    """

    deals_by_itself = True

    def __init__(
        self,
        dataset: SavableDataset,
        *,
        length: int,
        filler: Callable[[], dict[str, Any]],
        pin_memory: bool,
        watch: NamedWatch,
    ) -> None:
        self._dataset = dataset
        self._watch = watch
        self._length = length
        self._filler = filler
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Without workers a pass that was left half way has moved this very object.
        self._dataset.restore_state(None)
        given = 0
        for _, _, batch in _items(ShardStream(self._dataset, watch=self._watch), self._pin_memory):
            given += 1
            yield batch
        assert given <= self._length, f"{given} micro-batches, foretold {self._length}"
        for _ in range(given, self._length):
            yield self._filler()


def restore(dataset: SavableDataset, place: ReadingPlace) -> None:
    """Sets a data set to a place; its workers must not have been started.

    Raises:
        ValueError: The place is not one of this data set.
    """
    try:
        merged = dataset.merge_states([pickle.loads(state) for state in place.states])
        dataset.restore_state(merged)
    except (
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"The place of the training data in the checkpoint cannot be restored: "
            f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}."
        ) from error
    except (EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"The place of the training data in the checkpoint is damaged: {error!r}."
        ) from error
