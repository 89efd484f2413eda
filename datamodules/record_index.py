"""Random access to the records of a JSONL or JSON-array file, without holding them in memory."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datamodules.json_scan import scan_json_array, scan_json_lines

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RECORDS_TRIED = 10


class RecordError(ValueError):
    """One record of a file is not JSON, while others may be."""


class RecordIndex:
    """The records of one file by number, read from disk when asked for.

    Opening reads the file once and keeps two byte offsets per record (int64 [records, 2]). The
    object can be pickled and forked: every read names its own position, and a copy in another
    process opens the file for itself.

    Args:
        path: A file of one JSON value per line, or of one JSON array.

    Raises:
        ValueError: The file is missing, empty, or of neither form.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        if not self.path.is_file():
            raise ValueError(f"There is no file {self.path}, but records are to be read from it.")
        self.offsets = self._scan()
        if len(self.offsets) == 0:
            raise ValueError(f"The file {self.path} holds no record, but at least one is needed.")
        self._check_form()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> Any:
        """Reads and decodes one record.

        Raises:
            RecordError: The record is not valid JSON.
        """
        if not 0 <= number < len(self.offsets):
            raise IndexError(f"record {number} of {len(self.offsets)} in {self.path}")
        start, end = (int(offset) for offset in self.offsets[number])
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        content = os.pread(self._descriptor, end - start, start)
        try:
            return json.loads(content.decode("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RecordError(
                f"Record {number} of {self.path}, at byte {start}, is not JSON: {error}."
            ) from error

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "offsets": self.offsets, "_descriptor": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def _check_form(self) -> None:
        """Raises the first record's error if no record of the first few is JSON.

        A file of another kind has none; in a file of records one may be bad.
        """
        first_error: RecordError | None = None
        for number in range(min(_RECORDS_TRIED, len(self))):
            try:
                self[number]
            except RecordError as error:
                first_error = first_error or error
            else:
                return
        assert first_error is not None
        raise first_error

    def _scan(self) -> np.ndarray:
        with open(self.path, "rb") as stream:
            start = _first_byte(stream)
            first = stream.read(1)
            stream.seek(start)
            if first == b"[":
                return scan_json_array(stream, str(self.path))
            return scan_json_lines(stream)


def _first_byte(stream: BinaryIO) -> int:
    """Moves to the first byte that is neither byte order mark nor whitespace."""
    if stream.read(3) != _BYTE_ORDER_MARK:
        stream.seek(0)
    while (byte := stream.read(1)) and byte.isspace():
        pass
    return stream.seek(-len(byte), os.SEEK_CUR)
