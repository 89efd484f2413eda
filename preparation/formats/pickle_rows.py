"""Records of pickled lists, part by part, read without running anything that they name."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from preparation.formats.files import name_in_source
from preparation.formats.rows import Row
from preparation.reasons import RejectionReason
from preparation.source import Piece, Rejected
from sample_loaders.safe_pickle import DamagedPickle, UnsafePickle, load_pickle

COUNT_SUFFIX = ".count"


class PickleRows:
    """The elements of pickled lists; a part is read whole, as a pickle has no other way in.

    Beside `part.pkl` stands `part.count` with the number of its records as text. A part without one
    is read as well; where the two differ, that is reported as one rejection, named as the count.

    Args:
        source: The folder or file that keys are relative to.
        files: The parts.
    """

    def __init__(self, source: Path, files: Sequence[Path]) -> None:
        self.source = source
        self.files = tuple(files)

    def pieces(self) -> Sequence[Piece]:
        """Lists the parts."""
        return [Piece(path=path, size_bytes=path.stat().st_size) for path in self.files]

    def read(self, piece: Piece) -> Iterator[Row | Rejected]:
        """Decodes a part."""
        name = name_in_source(self.source, piece.path)
        try:
            records = load_pickle(piece.path)
        except UnsafePickle as error:
            yield Rejected(key=name, reason=RejectionReason.UNSAFE_PICKLE, message=str(error))
            return
        except DamagedPickle as error:
            yield Rejected(key=name, reason=RejectionReason.DAMAGED_FILE, message=str(error))
            return
        if not isinstance(records, list):
            yield Rejected(
                key=name,
                reason=RejectionReason.DAMAGED_FILE,
                message=f"{name} holds a {type(records).__name__}, not a list of records.",
            )
            return
        yield from self._check_count(piece.path, len(records))
        for number in range(len(records)):
            record, records[number] = records[number], None  # a part can be most of the memory
            yield Row(key=f"{name}#{number}", number=number, value=record)

    def _check_count(self, path: Path, found: int) -> Iterator[Rejected]:
        count_path = path.with_suffix(COUNT_SUFFIX)
        if not count_path.is_file():
            return
        with open(count_path, "rb") as stream:
            text = stream.read(64).decode("ascii", errors="replace").strip()
        if not text.isdecimal() or int(text) != found:
            name = name_in_source(self.source, count_path)
            yield Rejected(
                key=name,
                reason=RejectionReason.DAMAGED_FILE,
                message=f"{name} says {text!r}, but {path.name} holds {found} record(s).",
            )
