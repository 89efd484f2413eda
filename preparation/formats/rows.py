"""The two halves of every format: rows of some kind of file, and what makes samples of a row."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from preparation.reasons import RejectionReason
from preparation.source import Piece, RawSample, Rejected
from sample_loaders.errors import BadSample


class Refusal(Exception):  # noqa: N818 - it is about a record, not about the program
    """A record that no sample can be made of.

    Args:
        reason: Why, for programs.
        message: Why, in one sentence for people.
    """

    def __init__(self, reason: RejectionReason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One decoded record of a source.

    Attributes:
        key: Names it in the source.
        number: Counts records, where the file has numbers; else a number that belongs to it alone
            in its file.
        value: What was decoded.
    """

    key: str
    number: int
    value: Any


class Rows(Protocol):
    """The records of all files of one kind."""

    def pieces(self) -> Sequence[Piece]:
        """Lists what there is to read."""

    def read(self, piece: Piece) -> Iterator[Row | Rejected]:
        """Decodes the records of a piece."""


class RowReader:
    """A reader that makes samples of each row for itself.

    Args:
        rows: Where records come from.
        convert: Makes samples of a record; a `Refusal` or a `BadSample` that it raises rejects it.
    """

    def __init__(
        self, rows: Rows, convert: Callable[[Row], Iterable[RawSample | Rejected]]
    ) -> None:
        self.rows = rows
        self.convert = convert

    def pieces(self) -> Sequence[Piece]:
        """Lists what there is to read."""
        return self.rows.pieces()

    def read(self, piece: Piece) -> Iterator[RawSample | Rejected]:
        """Reads a piece."""
        for row in self.rows.read(piece):
            if isinstance(row, Rejected):
                yield row
                continue
            try:
                yield from self.convert(row)
            except Refusal as refusal:
                yield Rejected(key=row.key, reason=refusal.reason, message=refusal.message)
            except BadSample as error:
                yield Rejected(
                    key=row.key, reason=RejectionReason.INVALID_RECORD, message=error.message
                )
