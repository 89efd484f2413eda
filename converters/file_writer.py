"""Large files written by several processes, each file hashed while it grows."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

_READ_BYTES = 4 * 2**20
_PR_SET_PDEATHSIG = 1


class HashedFile:
    """A new file whose bytes a thread hashes behind the writer.

    Args:
        path: of the file, which must not exist.
        release: gives back the memory of what was read for what is written.
    """

    def __init__(self, path: Path, release: Callable[[], None]) -> None:
        self._stream = path.open("xb")
        self._reader = os.open(path, os.O_RDONLY)
        self._release = release
        self._sha256 = hashlib.sha256()
        self._failure: Exception | None = None
        self._ends: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview) -> int:
        """Append bytes."""
        return self._stream.write(data)

    def tell(self) -> int:
        """Return how much was written."""
        return self._stream.tell()

    def flush(self) -> None:
        """Hand over what was written."""
        self._stream.flush()

    def done_with_a_chunk(self) -> None:
        """Let the thread go on to here, and give back the memory that the chunk took."""
        self._stream.flush()
        self._ends.put(self._stream.tell())
        self._release()

    def close(self) -> str:
        """Finish the file and return the hexadecimal SHA-256 of its bytes.

        Raises:
            OSError: the disk is full or failed.
        """
        try:
            self._stream.flush()
            self._ends.put(self._stream.tell())
            self._ends.put(None)
            self._thread.join()
            if self._failure is not None:
                raise self._failure
            os.fsync(self._stream.fileno())
        finally:
            self._ends.put(None)
            self._thread.join()
            self._stream.close()
            os.close(self._reader)
        return self._sha256.hexdigest()

    def _follow(self) -> None:
        position = 0
        try:
            while (end := self._ends.get()) is not None:
                while position < end:
                    data = os.pread(self._reader, min(_READ_BYTES, end - position), position)
                    assert data, "a file got shorter"
                    self._sha256.update(data)
                    position += len(data)
        except Exception as error:  # raised again by `close`
            self._failure = error


@dataclass(frozen=True, kw_only=True)
class FileTask(Generic[Result]):
    """A file to write.

    Attributes:
        path: of the file.
        nbytes: about how many; the processes share the work by this.
        write: fills the file.
    """

    path: Path
    nbytes: int
    write: Callable[[HashedFile], Result]


@dataclass(frozen=True, kw_only=True)
class Written(Generic[Result]):
    """A file that was written.

    Attributes:
        path: of the file.
        sha256: hexadecimal, of its bytes.
        result: of the task.
    """

    path: Path
    sha256: str
    result: Result


def write_files(
    tasks: Sequence[FileTask[Result]], jobs: int, release: Callable[[], None]
) -> list[Written[Result]]:
    """Write files in several processes.

    Args:
        tasks: one for each file.
        jobs: processes at most; 1 writes in this one.
        release: gives back the memory of what was read.

    Raises:
        ValueError: a source is damaged.
        OSError: the disk is full or failed.
        RuntimeError: a process was killed.
    """
    # Copies gain nothing from threads, and waiting ones take the core from the one that hashes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if jobs == 1 or len(tasks) <= 1:
            return [_write(task, release) for task in tasks]
        return _write_in_processes(tasks, jobs, release)
    finally:
        torch.set_num_threads(threads)


def _write_in_processes(
    tasks: Sequence[FileTask[Result]], jobs: int, release: Callable[[], None]
) -> list[Written[Result]]:
    loads: list[list[int]] = [[] for _ in range(min(jobs, len(tasks)))]
    for number in sorted(range(len(tasks)), key=lambda number: -tasks[number].nbytes):
        min(loads, key=lambda load: sum(tasks[one].nbytes for one in load)).append(number)
    # Forked, so that the processes have the mapped files and import nothing.
    context = multiprocessing.get_context("fork")
    running = []
    try:
        for load in loads:
            ours, theirs = context.Pipe(duplex=False)
            own = [tasks[number] for number in load]
            process = context.Process(target=_work, args=(own, release, theirs, os.getpid()))
            process.start()
            theirs.close()
            running.append((process, ours, load))
        results: dict[int, Written[Result]] = {}
        for process, connection, load in running:
            results.update(zip(load, _receive(process, connection), strict=True))
    finally:
        for process, connection, _ in running:
            process.kill()
            process.join()
            connection.close()
    return [results[number] for number in range(len(tasks))]


def _write(task: FileTask[Result], release: Callable[[], None]) -> Written[Result]:
    file = HashedFile(task.path, release)
    try:
        result = task.write(file)
    finally:
        sha256 = file.close()
    return Written(path=task.path, sha256=sha256, result=result)


def _work(
    tasks: Sequence[FileTask[Result]],
    release: Callable[[], None],
    connection: Connection,
    parent: int,
) -> None:
    # A conversion that is killed leaves nobody behind who still writes.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # The threads of the parent's arithmetic are not there after a fork: do not wait for them.
    torch.set_num_threads(1)
    try:
        answer: object = [_write(task, release) for task in tasks]
    except (ValueError, OSError) as error:
        answer = error
    connection.send_bytes(pickle.dumps(answer))
    connection.close()


def _receive(process: multiprocessing.process.BaseProcess, connection: Connection) -> list[Written]:
    try:
        answer = pickle.loads(connection.recv_bytes())
    except EOFError:
        process.join()
        raise RuntimeError(
            f"A process that was writing ended with status {process.exitcode}; if the system has "
            "killed it, there was too little memory."
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer
