"""Runs units in processes that end with the one that started them."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from preparation.exclusion import Exclusions
from preparation.options import PrepareOptions
from preparation.source import FormatRow
from preparation.unit_worker import UnitWorker
from preparation.units import Unit

_SECONDS_BETWEEN_LOOKS = 0.5
_SUBMITTED_PER_JOB = 2
_worker: UnitWorker
_done: Any


class WorkerDied(RuntimeError):  # noqa: N818 - the name says it
    """A process of the pool was killed or crashed."""


class Counters:
    """Samples, bytes of samples and bytes of pieces that all processes have done."""

    def __init__(self) -> None:
        self.values = multiprocessing.get_context("spawn").Array("q", 3)

    def advance(self, samples: int, size: int, pieces: int) -> None:
        """Adds to the counters."""
        with self.values.get_lock():
            for number, value in enumerate((samples, size, pieces)):
                self.values[number] += value


def make_units(
    units: Iterable[Unit],
    row: FormatRow,
    options: PrepareOptions,
    exclusions: Exclusions,
    units_folder: Path,
    show: Callable[[int, int, int], None],
) -> None:
    """Makes units, in this process when one job is asked for.

    Args:
        units: What to make.
        row: The format.
        options: The request.
        exclusions: Samples to leave out.
        units_folder: Takes the results.
        show: Is told now and then how much is done.

    Raises:
        WorkerDied: A process ended before its unit was done.
    """
    if options.jobs == 1:
        worker = UnitWorker(row, options, exclusions, units_folder)
        done = [0, 0, 0]

        def advance(samples: int, size: int, pieces: int) -> None:
            done[:] = done[0] + samples, done[1] + size, done[2] + pieces
            show(done[0], done[1], done[2])

        for unit in units:
            worker(unit, advance)
        return
    counters = Counters()
    initial = (row, options, exclusions, units_folder, counters)

    def look() -> None:
        samples, size, pieces = counters.values[:]
        show(samples, size, pieces)

    with _pool(options.jobs, _start, initial) as pool:
        for _ in _results(pool, _make, units, look, options.jobs):
            pass


def run_all(function: Callable[[Any], None], items: Iterable[Any], jobs: int) -> None:
    """Calls a function for each item, in processes when more than one job is asked for.

    Raises:
        WorkerDied: A process ended before it was done.
    """
    if jobs == 1:
        for item in items:
            function(item)
        return
    # Most often there is nothing to do, and starting processes would take longest.
    first = list(itertools.islice(items := iter(items), 1))
    if first:
        with _pool(jobs, _watch_parent, ()) as pool:
            for _ in _results(pool, function, itertools.chain(first, items), lambda: None, jobs):
                pass


def _pool(
    jobs: int, initializer: Callable[..., None], initial: tuple[Any, ...]
) -> ProcessPoolExecutor:
    # Spawned processes import only what they need, and hold nothing of this one.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer, initial)


def _results(
    pool: ProcessPoolExecutor,
    function: Callable[[Any], None],
    items: Iterable[Any],
    look: Callable[[], None],
    jobs: int,
) -> Iterator[None]:
    """Yields as items are done; the first error ends all."""
    others = set(multiprocessing.active_children())
    remaining = iter(items)
    waiting: set[Future[None]] = set()
    try:
        while True:
            # A few at a time: waiting for all of many thousands takes long by itself.
            more = itertools.islice(remaining, _SUBMITTED_PER_JOB * jobs - len(waiting))
            waiting |= {pool.submit(function, item) for item in more}
            if not waiting:
                return
            done, waiting = wait(waiting, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            look()
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise WorkerDied(
            "a process of the pool was killed or crashed, perhaps for lack of memory; start again "
            "with fewer --jobs to go on"
        ) from error
    finally:
        if waiting:  # units that are not whole are worth nothing
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _start(
    row: FormatRow,
    options: PrepareOptions,
    exclusions: Exclusions,
    units_folder: Path,
    counters: Counters,
) -> None:
    global _worker, _done
    _watch_parent()
    _worker = UnitWorker(row, options, exclusions, units_folder)
    _done = counters


def _make(unit: Unit) -> None:
    _worker(unit, _done.advance)


def _watch_parent() -> None:
    """Ends this process when its parent ends, which a pool by itself does not do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool in order
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
