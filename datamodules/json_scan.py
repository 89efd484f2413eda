"""Finds where the records of a JSON file are, reading it once in pieces."""

from enum import IntEnum
from typing import BinaryIO

import numpy as np

CHUNK_BYTES = 4 * 1024 * 1024

_NEWLINE, _BACKSLASH = b"\n\\"
_LONGEST_BLANK_LINE = 16


class _Kind(IntEnum):
    """What a byte means for the structure of JSON."""

    OTHER = 0
    QUOTE = 1
    OPEN = 2
    CLOSE = 3
    COMMA = 4


_KINDS = np.full(256, _Kind.OTHER, dtype=np.uint8)
_KINDS[np.frombuffer(b'"', dtype=np.uint8)] = _Kind.QUOTE
_KINDS[np.frombuffer(b"[{", dtype=np.uint8)] = _Kind.OPEN
_KINDS[np.frombuffer(b"]}", dtype=np.uint8)] = _Kind.CLOSE
_KINDS[np.frombuffer(b",", dtype=np.uint8)] = _Kind.COMMA

_STRUCTURAL = _KINDS != _Kind.OTHER

# How deep each kind goes, by its number.
_STEPS = np.array([0, 0, 1, -1, 0])


def scan_json_lines(stream: BinaryIO, chunk_bytes: int = CHUNK_BYTES) -> np.ndarray:
    """Finds the lines of a file that are not blank.

    Args:
        stream: The file, at its first byte that counts.
        chunk_bytes: Size of the pieces.

    Returns:
        int64 [lines, 2]: first byte, and the byte after the last.
    """
    first = stream.tell()
    ends = []
    position = first
    while chunk := stream.read(chunk_bytes):
        found = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == _NEWLINE)
        ends.append(found.astype(np.int64) + position)
        position += len(chunk)
    line_ends = np.concatenate([*ends, np.array([position], dtype=np.int64)])
    line_starts = np.concatenate([np.array([first], dtype=np.int64), line_ends[:-1] + 1])
    offsets = np.stack([line_starts, line_ends], axis=1)
    offsets = offsets[line_ends > line_starts]
    return offsets[~_blank(stream, offsets)]


def _blank(stream: BinaryIO, offsets: np.ndarray) -> np.ndarray:
    """Tells which lines hold whitespace only; only short ones are looked at."""
    blank = np.zeros(len(offsets), dtype=bool)
    for row in np.flatnonzero(offsets[:, 1] - offsets[:, 0] <= _LONGEST_BLANK_LINE):
        start, end = (int(offset) for offset in offsets[row])
        stream.seek(start)
        blank[row] = not stream.read(end - start).strip()
    return blank


def scan_json_array(stream: BinaryIO, name: str, chunk_bytes: int = CHUNK_BYTES) -> np.ndarray:
    """Finds the elements of a JSON array, of any type, without decoding them.

    Args:
        stream: The file, at the opening bracket.
        name: The file's name for messages.
        chunk_bytes: Size of the pieces.

    Returns:
        int64 [elements, 2]: first byte, and the byte after the last, whitespace around included.

    Raises:
        ValueError: The array does not end, or something follows it, or an element is missing.
    """
    first = stream.tell()
    scanner = _ArrayScanner(first)
    while not scanner.ended and (chunk := stream.read(chunk_bytes)):
        scanner.feed(chunk)
    if not scanner.ended:
        raise ValueError(
            f"The JSON array in {name} is not closed: the file ends at byte {scanner.position}, "
            f"inside element {len(scanner)}."
        )
    _check_tail(stream, scanner.end + 1, name)
    offsets = scanner.offsets()
    if len(offsets) == 1:
        start, end = (int(offset) for offset in offsets[0])
        if end - start <= chunk_bytes:
            stream.seek(start)
            if not stream.read(end - start).strip():
                return offsets[:0]
    return offsets


def _check_tail(stream: BinaryIO, end: int, name: str) -> None:
    stream.seek(end)
    while tail := stream.read(CHUNK_BYTES):
        if tail.strip():
            garbage = end + len(tail) - len(tail.lstrip())
            raise ValueError(
                f"The JSON array in {name} ends at byte {end}, but more follows at byte {garbage}."
            )
        end += len(tail)


class _ArrayScanner:
    """Follows strings and nesting through the bytes of a JSON array, chunk by chunk.

    JSON's structural characters are ASCII, which no byte of a longer UTF-8 character is, so bytes
    are enough.
    """

    def __init__(self, first: int) -> None:
        self.position = first
        self.end = -1
        self._first = first
        self._depth = 0
        self._in_string = False
        self._escaping = False  # the chunk before ended with an odd run of backslashes
        self._commas: list[np.ndarray] = []

    @property
    def ended(self) -> bool:
        """Whether the closing bracket was seen."""
        return self.end >= 0

    def __len__(self) -> int:
        return sum(len(commas) for commas in self._commas)

    def offsets(self) -> np.ndarray:
        """Returns int64 [elements, 2]: what lies between the brackets and the commas."""
        commas = np.concatenate([np.zeros(0, dtype=np.int64), *self._commas])
        starts = np.concatenate([[self._first + 1], commas + 1]).astype(np.int64)
        ends = np.concatenate([commas, [self.end]]).astype(np.int64)
        return np.stack([starts, ends], axis=1)

    def feed(self, chunk: bytes) -> None:
        """Goes on through the next bytes."""
        # Only the few bytes that carry structure are looked at further.
        content = np.frombuffer(chunk, dtype=np.uint8)
        places = np.flatnonzero(_STRUCTURAL[content])
        kinds = _KINDS[content[places]]
        quotes = kinds == _Kind.QUOTE
        quotes[quotes] = ~self._escaped(chunk, places[quotes])
        inside = (np.cumsum(quotes) + self._in_string) % 2 == 1
        steps = np.where(inside, 0, _STEPS[kinds])
        depth = np.cumsum(steps) + self._depth
        closed = np.flatnonzero((depth == 0) & (steps == -1))
        limit = int(closed[0]) if len(closed) else len(places)
        commas = (kinds == _Kind.COMMA) & (depth == 1) & ~inside
        self._commas.append(places[:limit][commas[:limit]].astype(np.int64) + self.position)
        if len(closed):
            self.end = self.position + int(places[limit])
        if len(places):
            self._depth = int(depth[-1])
            self._in_string = bool(inside[-1])
        self._escaping = bool(self._backslashes_before(chunk, len(chunk)) % 2)
        self.position += len(chunk)

    def _escaped(self, chunk: bytes, quotes: np.ndarray) -> np.ndarray:
        """Tells which of the quotes, by their places, are behind an odd run of backslashes."""
        content = np.frombuffer(chunk, dtype=np.uint8)
        # Nearly all runs are of one backslash. Longer ones, and those that may reach back into the
        # chunk before, where the places below 0 wrap around, are counted.
        escaped = content[quotes - 1] == _BACKSLASH
        longer = escaped & (content[np.maximum(quotes - 2, 0)] == _BACKSLASH)
        for number in np.flatnonzero(longer | (quotes < 2)):
            escaped[number] = self._backslashes_before(chunk, int(quotes[number])) % 2
        return escaped

    def _backslashes_before(self, chunk: bytes, at: int) -> int:
        """Counts the run of backslashes that ends before `at`, its part in the last chunk too."""
        start = at
        while start > 0 and chunk[start - 1] == _BACKSLASH:
            start -= 1
        return at - start + (self._escaping if start == 0 else 0)
