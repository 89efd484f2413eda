"""Ends a process whose read does not come back, and says which.

A read from a broken mount cannot be interrupted: the thread that waits for it gets no signal. So
another thread looks at the clock, names what hangs, and ends the process; the others of the run end
with it, instead of waiting for ever at the next step.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datamodules.bad_samples import BadSampleLog
from sample_loaders.errors import BadSample, Reason

EXIT_STATUS = 1
_LOOKS_PER_TIMEOUT = 10


class ReadWatch:
    """Watches the reads of this process, one at a time.

    It may be pickled or forked at any time; every process that reads gets a thread of its own.

    Args:
        timeout_seconds: A read that takes longer ends the process; None for no bound.
        log: The list that what hangs is written to.
    """

    def __init__(
        self, timeout_seconds: float | None = None, log: BadSampleLog | None = None
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.log = log
        self._deadline: tuple[float, str, str] | None = None
        self._process: int | None = None

    @contextmanager
    def reading(self, key: str, source: str) -> Iterator[None]:
        """Watches what is done inside.

        Args:
            key: What is read, for people and for the list.
            source: The file or data set that it belongs to.
        """
        if self.timeout_seconds is None:
            yield
            return
        if self._process != os.getpid():
            self._process = os.getpid()
            threading.Thread(target=self._look, name="read watch", daemon=True).start()
        self._deadline = (time.monotonic() + self.timeout_seconds, key, source)
        try:
            yield
        finally:
            self._deadline = None

    def _look(self) -> None:
        assert self.timeout_seconds is not None
        while True:
            time.sleep(self.timeout_seconds / _LOOKS_PER_TIMEOUT)
            current = self._deadline
            if current is not None and time.monotonic() > current[0]:
                self._end(current[1], current[2])

    def _end(self, key: str, source: str) -> None:
        message = (
            f"Reading {key} of {source} has not ended in "
            f"read_timeout_seconds={self.timeout_seconds:g}, so this process ends."
        )
        try:
            if self.log is not None:
                self.log.note(key, source, BadSample(Reason.HUNG_READ, message))
        finally:  # the list may lie on the very mount that hangs, or be full
            sys.stderr.write(f"error: {message}\n")
            sys.stderr.flush()
            os._exit(EXIT_STATUS)

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_seconds": self.timeout_seconds, "log": self.log}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
