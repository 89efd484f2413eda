"""What happens with samples that cannot be used: they are listed, counted, and not too many."""

import json
import os
from collections import Counter, deque
from pathlib import Path

from sample_loaders.errors import BadSample

# A line stays well below what one write call takes whole, so that lines never mix.
LONGEST_MESSAGE = 1000
NAMED_IN_STOP = 3


class TooManyBadSamples(RuntimeError):  # noqa: N818 - the name says it
    """More samples in a row could not be used than the run allows."""


class BadSampleLog:
    """Lists bad samples in a file, counts them, and stops the run when only bad ones come.

    The file gets one JSON object a line (`key`, `source`, `reason`, `message`). Each line is one
    write to a file opened for appending, so worker processes and ranks may share it; nothing is
    kept open, so the object may be pickled or forked at any time.

    Args:
        path: The file to append to; its folder is made. None only counts.
        max_in_a_row: So many bad samples one after the other are still accepted.
    """

    def __init__(self, path: str | os.PathLike[str] | None, max_in_a_row: int) -> None:
        if max_in_a_row < 0:
            raise ValueError(
                f"max_bad_samples_in_a_row is {max_in_a_row}, but must be zero or more."
            )
        self.path = None if path is None else Path(path)
        self.max_in_a_row = max_in_a_row
        self.counts: Counter[tuple[str, str]] = Counter()
        self._in_a_row = 0
        self._last: deque[str] = deque(maxlen=NAMED_IN_STOP)

    def skip(self, key: str, source: str, error: BadSample) -> None:
        """Lists one bad sample.

        Raises:
            TooManyBadSamples: It is one more in a row than allowed.
        """
        self.note(key, source, error)
        self._in_a_row += 1
        self._last.append(f"{key} ({error.reason}: {error.message.rstrip('.')})")
        if self._in_a_row > self.max_in_a_row:
            raise TooManyBadSamples(
                f"{self._in_a_row} samples in a row cannot be used, which is more than "
                f"max_bad_samples_in_a_row={self.max_in_a_row}; the last ones are "
                f"{'; '.join(self._last)}."
            )

    def note(self, key: str, source: str, error: BadSample) -> None:
        """Lists and counts a bad sample, whatever came before."""
        self.counts[source, error.reason] += 1
        self._append(key, source, error)

    def accept(self) -> None:
        """Notes that a sample was good, which ends a row of bad ones."""
        self._in_a_row = 0

    def _append(self, key: str, source: str, error: BadSample) -> None:
        if self.path is None:
            return
        entry = {
            "key": key,
            "source": source,
            "reason": error.reason,
            "message": error.message[:LONGEST_MESSAGE],
        }
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
        if written != len(line):
            raise OSError(f"Only {written} of {len(line)} bytes could be appended to {self.path}.")


def count_bad_samples(path: str | os.PathLike[str]) -> Counter[tuple[str, str]]:
    """Counts the entries of a list of bad samples, over all processes that wrote to it.

    Args:
        path: The file that `BadSampleLog` appended to.

    Returns:
        Number of skips by (source, reason).
    """
    counts: Counter[tuple[str, str]] = Counter()
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            counts[entry["source"], entry["reason"]] += 1
    return counts
