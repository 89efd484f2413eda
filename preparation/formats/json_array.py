"""The elements of a JSON array of any length, decoded one by one in little memory."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from preparation.source import Piece

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1024 * 1024
_WHITESPACE = " \t\r\n"


def starts_array(stream: BinaryIO) -> bool:
    """Tells whether the first byte that counts is an opening bracket; goes back to the start."""
    start = _array_start(stream)
    stream.seek(0)
    return start >= 0


def array_pieces(
    stream: BinaryIO, path: Path, size_bytes: int, piece_bytes: int, max_record_bytes: int
) -> list[Piece]:
    """Cuts an array between elements, by decoding it once.

    Raises:
        ValueError: The file is no JSON array.
    """
    starts: list[int] = []
    for offset, _ in array_elements(stream, path.name, 0, -1, max_record_bytes):
        if not starts or offset - starts[-1] >= piece_bytes:
            starts.append(offset)
    stops = [*starts[1:], -1]
    return [
        Piece(
            path=path,
            first=start,
            stop=stop,
            size_bytes=(stop if stop > 0 else size_bytes) - start,
        )
        for start, stop in zip(starts, stops, strict=True)
    ]


def array_elements(
    stream: BinaryIO, name: str, first: int, stop: int, max_record_bytes: int
) -> Iterator[tuple[int, Any]]:
    """Yields the elements that start in [first, stop), each with the place of its first byte.

    Args:
        stream: The file.
        name: Its name for messages.
        first: 0, or the first byte of an element.
        stop: The first byte of the first element that does not count, or -1.
        max_record_bytes: No element is longer.

    Raises:
        ValueError: Something is not JSON, or an element is too long; there is no way to find the
            next element then.
    """
    start = first if first > 0 else _array_start(stream) + 1
    stream.seek(start)
    text = _Text(stream, start)
    if text.next_character() == "]":
        return
    while True:
        text.next_character()
        offset = text.offset
        if 0 <= stop <= offset:
            return
        value = _next_element(text, name, max_record_bytes)
        yield offset, value
        end = text.next_character()
        text.skip(1)
        if end == "]":
            return


def _next_element(text: "_Text", name: str, max_record_bytes: int) -> Any:
    """Decodes one element up to the comma or bracket behind it."""
    decoder = json.JSONDecoder()
    wanted = _CHUNK_BYTES
    while True:
        try:
            value, end = decoder.raw_decode(text.characters, text.position)
            delimiter = text.delimiter_at(end)
            if delimiter not in (",", "]"):  # a number could go on behind what was read so far
                raise ValueError("no comma and no closing bracket follows")
            text.skip(end - text.position)
            return value
        except (ValueError, RecursionError) as error:
            held = len(text.characters) - text.position
            if text.ended or held > max_record_bytes or isinstance(error, RecursionError):
                raise ValueError(
                    f"The element at byte {text.offset} of the JSON array in {name} is longer than "
                    f"{max_record_bytes} characters or not JSON: {error}."
                ) from error
        text.read_more(wanted)
        wanted *= 2


class _Text:
    """A window of the file as text, which knows the byte that it starts at."""

    def __init__(self, stream: BinaryIO, offset: int) -> None:
        self.characters = ""
        self.position = 0
        self.ended = False
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._counted_position = 0
        self._counted_offset = offset

    @property
    def offset(self) -> int:
        """The byte in the file that `position` is at."""
        passed = self.characters[self._counted_position : self.position]
        self._counted_offset += len(passed) if passed.isascii() else len(passed.encode("utf-8"))
        self._counted_position = self.position
        return self._counted_offset

    def skip(self, count: int) -> None:
        self.position += count

    def read_more(self, count_bytes: int) -> None:
        """Drops what was passed and appends more of the file."""
        assert self.offset >= 0  # counts the bytes of what is dropped
        chunk = self._stream.read(count_bytes)
        self.ended = len(chunk) < count_bytes
        try:
            more = self._decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            near = self._stream.tell() - len(chunk)
            raise ValueError(f"The JSON array is not UTF-8 near byte {near}: {error}.") from error
        self.characters = self.characters[self.position :] + more
        self.position = self._counted_position = 0

    def next_character(self) -> str:
        """Moves to the next character that is not blank and returns it; "" at the end."""
        while True:
            delimiter = self.delimiter_at(self.position)
            if delimiter is not None:
                while self.characters[self.position] in _WHITESPACE:
                    self.position += 1
                return delimiter
            if self.ended:
                return ""
            self.read_more(_CHUNK_BYTES)

    def delimiter_at(self, position: int) -> str | None:
        """Returns the first character from a place on that is not blank, None where none is."""
        while position < len(self.characters):
            if self.characters[position] not in _WHITESPACE:
                return self.characters[position]
            position += 1
        return None


def _array_start(stream: BinaryIO) -> int:
    """Returns the place of the opening bracket, -1 where something else comes first."""
    stream.seek(0)
    start = 3 if stream.read(3) == _BYTE_ORDER_MARK else 0
    stream.seek(start)
    while (byte := stream.read(1)) and byte.isspace():
        start += 1
    return start if byte == b"[" else -1
