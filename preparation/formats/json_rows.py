"""Records of JSON files: one value per line, also gzipped, or one array; nothing is read whole."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from preparation.formats.files import name_in_source
from preparation.formats.json_array import array_elements, array_pieces, starts_array
from preparation.formats.rows import Row
from preparation.reasons import RejectionReason
from preparation.source import Piece, Rejected

JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
MAX_RECORD_BYTES = 64 * 1024 * 1024
_SKIPPED_AT_MOST_BYTES = 1024 * 1024 * 1024
_SKIP_BYTES = 1024 * 1024


class JsonRows:
    """The records of JSON files.

    A piece is a stretch of bytes: a line, or an element of an array, belongs to the piece that its
    first byte lies in. Gzipped files cannot be entered in the middle and are a piece each.

    Args:
        source: The folder or file that keys are relative to.
        files: The files.
        piece_bytes: About how long a piece is.
        max_record_bytes: Longer lines are rejected without being held.
    """

    def __init__(
        self,
        source: Path,
        files: Sequence[Path],
        piece_bytes: int = 32 * 1024 * 1024,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self.source = source
        self.files = tuple(files)
        self.piece_bytes = piece_bytes
        self.max_record_bytes = max_record_bytes
        self._pieces: list[Piece] | None = None

    def pieces(self) -> Sequence[Piece]:
        """Lists stretches of all files.

        Raises:
            ValueError: A long file starts as an array and is none.
        """
        if self._pieces is None:
            self._pieces = [piece for path in self.files for piece in self._stretches(path)]
        return self._pieces

    def read(self, piece: Piece) -> Iterator[Row | Rejected]:
        """Decodes the records of a piece."""
        name = name_in_source(self.source, piece.path)
        if _gzipped(piece.path):
            yield from self._read_gzipped(piece.path, name)
            return
        with open(piece.path, "rb") as stream:
            if starts_array(stream):
                found = array_elements(stream, name, piece.first, piece.stop, self.max_record_bytes)
                for offset, value in found:
                    yield Row(key=f"{name}@{offset}", number=offset, value=value)
                return
            for offset, line in self._lines(stream, piece.first, piece.stop):
                yield from self._decode(line, f"{name}@{offset}", offset)

    def first_value(self) -> Any:
        """Returns the first record that is JSON, None where there is none."""
        for path in self.files:
            for row in self.read(Piece(path=path)):
                if isinstance(row, Row):
                    return row.value
        return None

    def _stretches(self, path: Path) -> list[Piece]:
        size_bytes = path.stat().st_size
        if _gzipped(path) or size_bytes <= self.piece_bytes:
            return [Piece(path=path, size_bytes=size_bytes)]
        with open(path, "rb") as stream:
            if starts_array(stream):
                return array_pieces(
                    stream, path, size_bytes, self.piece_bytes, self.max_record_bytes
                )
        starts = range(0, size_bytes, self.piece_bytes)
        return [
            Piece(
                path=path,
                first=start,
                stop=min(start + self.piece_bytes, size_bytes),
                size_bytes=min(self.piece_bytes, size_bytes - start),
            )
            for start in starts
        ]

    def _read_gzipped(self, path: Path, name: str) -> Iterator[Row | Rejected]:
        key = name
        try:
            with gzip.open(path, "rb") as stream:
                for number, (_, line) in enumerate(self._lines(stream, 0, -1)):  # type: ignore[arg-type]
                    key = f"{name}#{number}"
                    yield from self._decode(line, key, number)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            yield Rejected(
                key=name,
                reason=RejectionReason.DAMAGED_FILE,
                message=f"After {key} the file {name} cannot be unpacked: {error}.",
            )

    def _lines(self, stream: BinaryIO, first: int, stop: int) -> Iterator[tuple[int, bytes | None]]:
        """Yields the lines that start in [first, stop) and where; None stands for too long ones."""
        offset = first
        if first > 0:
            stream.seek(first - 1)
            offset = first - 1 + self._skip_line(stream)
        while stop < 0 or offset < stop:
            line = stream.readline(self.max_record_bytes + 1)
            if not line:
                return
            if len(line) > self.max_record_bytes and not line.endswith(b"\n"):
                yield offset, None
                skipped = self._skip_line(stream)
                if skipped > _SKIPPED_AT_MOST_BYTES:
                    return
                offset += len(line) + skipped
                continue
            yield offset, line
            offset += len(line)

    def _skip_line(self, stream: BinaryIO) -> int:
        """Passes over the rest of a line, holding little of it, and returns its length."""
        skipped = 0
        while part := stream.readline(_SKIP_BYTES):
            skipped += len(part)
            if part.endswith(b"\n") or skipped > _SKIPPED_AT_MOST_BYTES:
                break
        return skipped

    def _decode(self, line: bytes | None, key: str, number: int) -> Iterator[Row | Rejected]:
        if line is None:
            yield Rejected(
                key=key,
                reason=RejectionReason.INVALID_RECORD,
                message=f"The line is longer than {self.max_record_bytes} bytes.",
            )
            return
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            return
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield Rejected(
                key=key,
                reason=RejectionReason.INVALID_RECORD,
                message=f"The line is not JSON: {error}.",
            )
            return
        yield Row(key=key, number=number, value=value)


def _gzipped(path: Path) -> bool:
    return path.name.lower().endswith(".gz")
