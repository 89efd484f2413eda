"""JSON records that name loose images, cut so that the images of a piece are not too many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preparation.formats.images import loose_size_bytes
from preparation.formats.json_rows import JsonRows
from preparation.formats.rows import Row
from preparation.source import Piece

_PIECE_BYTES = 1024 * 1024
_RECORDS_MEASURED = 20


def image_names(record: Any) -> list[list[str]]:
    """Returns the names in `image` or `images`, each in a list of its own."""
    if not isinstance(record, Mapping):
        return []
    given = record.get("image", record.get("images"))
    names = given if isinstance(given, list) else [given]
    return [[name] for name in names if isinstance(name, str)]


class LooseImageRows(JsonRows):
    """JSON records with loose images, whose sizes count in those of the pieces.

    Args:
        source: The folder or file that keys are relative to.
        files: The JSON files.
        folder: Where the images are.
        find_names: Returns for each image of a record the names that it may have.
        piece_bytes: About how many bytes of JSON a piece has.
    """

    def __init__(
        self,
        source: Path,
        files: Sequence[Path],
        folder: Path,
        find_names: Callable[[Any], list[list[str]]] = image_names,
        piece_bytes: int = _PIECE_BYTES,
    ) -> None:
        super().__init__(source, files, piece_bytes)
        self.folder = folder
        self.find_names = find_names

    def pieces(self) -> list[Piece]:
        """Lists stretches of all files, with sizes as those of the first images suggest."""
        pieces = super().pieces()
        factor = self._bytes_per_byte(pieces[0]) if pieces else 1.0
        return [replace(piece, size_bytes=round(piece.size_bytes * factor)) for piece in pieces]

    def _bytes_per_byte(self, piece: Piece) -> float:
        """Estimates how much is read, images included, for a byte of JSON."""
        record_bytes = image_bytes = 0
        rows = (row for row in self.read(piece) if isinstance(row, Row))
        for row, _ in zip(rows, range(_RECORDS_MEASURED), strict=False):
            record_bytes += len(repr(row.value).encode("utf-8", "replace"))
            for names in self.find_names(row.value):
                image_bytes += max(
                    (loose_size_bytes(self.folder, name) for name in names), default=0
                )
        return 1.0 + image_bytes / record_bytes if record_bytes else 1.0
