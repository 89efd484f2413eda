"""The quickstart's few lines on the terminal; everything else goes to log files."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_REFRESH_SECONDS = 0.5
_PLAIN_REFRESH_SECONDS = 10.0


class Console:
    """Writes to the terminal that the process began with, also while its output is redirected."""

    def __init__(self) -> None:
        self._stream: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        self._is_terminal = self._stream.isatty()
        self._open_line = False

    def line(self, text: str) -> None:
        """Write a line."""
        self._clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def status(self, text: str) -> None:
        """Show a passing state: it overwrites the one before on a terminal."""
        if self._is_terminal:
            self._clear()
            self._stream.write(text)
            self._open_line = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._open_line:
            self._stream.write("\r\x1b[2K")
            self._open_line = False

    @contextmanager
    def watching(self, describe: Callable[[], str | None]) -> Iterator[None]:
        """Show `describe()` again and again while the block runs; None shows nothing."""
        done = threading.Event()
        interval = _REFRESH_SECONDS if self._is_terminal else _PLAIN_REFRESH_SECONDS

        def watch() -> None:
            last = None
            while not done.wait(interval):
                text = describe()
                if text is not None and text != last:
                    self.status(text)
                    last = text

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append this process's and its children's output to a file while the block runs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = (os.dup(1), os.dup(2))
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for original, descriptor in zip(kept, (1, 2), strict=True):
            os.dup2(original, descriptor)
            os.close(original)
