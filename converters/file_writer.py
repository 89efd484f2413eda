"""Large files written by several processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, TypeVar

import torch

from converters.hashed_file import HashedFile

Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1


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
