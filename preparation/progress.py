"""A line that tells how far the work is."""

import time
from collections.abc import Callable
from typing import TextIO

_TERMINAL_SECONDS = 0.5
_LOG_SECONDS = 30.0


class ProgressLine:
    """Shows samples and megabytes per second and the time that is left.

    On a terminal one line is overwritten; elsewhere, as in a job's log, a line is added every half
    minute.

    Args:
        stream: Where to write.
        total_bytes: Of all pieces that are read now.
        clock: Returns seconds.
    """

    def __init__(
        self, stream: TextIO, total_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._total = total_bytes
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._started = self._written = clock()
        self._longest = 0

    def __call__(self, samples: int, size: int, piece_bytes: int) -> None:
        """Shows what is done when it is time to.

        Args:
            samples: How many were read so far.
            size: Bytes of their images.
            piece_bytes: Bytes of the pieces that are done.
        """
        now = self._clock()
        pause = _TERMINAL_SECONDS if self._is_terminal else _LOG_SECONDS
        if now - self._written < pause:
            return
        self._written = now
        seconds = now - self._started
        text = (
            f"{samples:,} samples, {samples / seconds:,.0f}/s, {size / seconds / 1e6:,.1f} MB/s, "
            f"{self._left(seconds, piece_bytes)}"
        )
        self._longest = max(self._longest, len(text))
        self._stream.write("\r" + text.ljust(self._longest) if self._is_terminal else text + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leaves the line."""
        if self._is_terminal and self._longest:
            self._stream.write("\n")
            self._stream.flush()

    def _left(self, seconds: float, piece_bytes: int) -> str:
        if not 0 < piece_bytes <= self._total:
            return "time left unknown"
        left = round(seconds * (self._total - piece_bytes) / piece_bytes)
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
