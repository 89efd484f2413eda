"""Rows of Parquet files by row group, and of the Arrow files that `datasets` saves, by file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from preparation.formats.files import find_files, name_in_source
from preparation.formats.rows import Row
from preparation.reasons import RejectionReason
from preparation.source import Piece, Rejected

PARQUET_SUFFIXES = (".parquet",)
_ROWS_AT_ONCE = 32


class ParquetRows:
    """The rows of Parquet files; a piece is a row group.

    Args:
        source: The folder or file that keys are relative to.
        files: The files.
        columns: What is read; columns that a file lacks are left out.
    """

    def __init__(self, source: Path, files: Sequence[Path], columns: Sequence[str]) -> None:
        self.source = source
        self.files = tuple(files)
        self.columns = tuple(columns)

    def pieces(self) -> Sequence[Piece]:
        """Lists the row groups, from the files' footers.

        Raises:
            ValueError: A file is no Parquet file.
        """
        pieces = []
        for path in self.files:
            metadata = _open_parquet(path).metadata
            for group in range(metadata.num_row_groups):
                pieces.append(
                    Piece(
                        path=path,
                        first=group,
                        stop=group + 1,
                        size_bytes=_group_size_bytes(metadata.row_group(group), self.columns),
                    )
                )
        return pieces

    def column_names(self) -> set[str]:
        """Returns the columns of the first file."""
        return set(_open_parquet(self.files[0]).schema_arrow.names)

    def read(self, piece: Piece) -> Iterator[Row | Rejected]:
        """Decodes row groups."""
        name = name_in_source(self.source, piece.path)
        file = _open_parquet(piece.path)
        stop = piece.stop if piece.stop >= 0 else file.metadata.num_row_groups
        number = sum(file.metadata.row_group(group).num_rows for group in range(piece.first))
        columns = [name for name in file.schema_arrow.names if name in self.columns]
        batches = file.iter_batches(
            batch_size=_ROWS_AT_ONCE,
            row_groups=list(range(piece.first, stop)),
            columns=columns,
            use_threads=False,
        )
        yield from _rows_of_batches(batches, name, number)


class ArrowRows:
    """The rows of a folder that `datasets.Dataset.save_to_disk` wrote; a piece is an Arrow file.

    Args:
        source: The folder; `dataset_dict.json` in it means one folder for each split.
        columns: What is read; columns that a file lacks are left out.

    Raises:
        ValueError: The data set has rows chosen by an index, which are not stored in order.
    """

    def __init__(self, source: Path, columns: Sequence[str]) -> None:
        self.source = source
        self.columns = tuple(columns)
        self.files = tuple(find_files(source, (".arrow",)))
        if not self.files:
            raise ValueError(f"The folder {source} holds no Arrow file of a saved data set.")
        for state_path in find_files(source, ("state.json",)):
            state = json.loads(state_path.read_bytes())
            if isinstance(state, dict) and state.get("_indices_data_files"):
                raise ValueError(
                    f"The data set {state_path.parent} was saved with an index over its rows; "
                    f"call flatten_indices() on it and save it again."
                )

    def pieces(self) -> Sequence[Piece]:
        """Lists the Arrow files."""
        return [Piece(path=path, size_bytes=path.stat().st_size) for path in self.files]

    def column_names(self) -> set[str]:
        """Returns the columns of the first file."""
        import pyarrow

        with pyarrow.memory_map(str(self.files[0])) as mapped:
            return set(pyarrow.ipc.open_stream(mapped).schema.names)

    def read(self, piece: Piece) -> Iterator[Row | Rejected]:
        """Decodes an Arrow file, which is mapped and not read whole."""
        import pyarrow

        name = name_in_source(self.source, piece.path)
        with pyarrow.memory_map(str(piece.path)) as mapped:
            reader = pyarrow.ipc.open_stream(mapped)
            columns = [name for name in reader.schema.names if name in self.columns]
            yield from _rows_of_batches((batch.select(columns) for batch in reader), name, 0)


def saved_dataset(source: Path) -> bool:
    """Tells whether a folder is one that `save_to_disk` wrote."""
    return (source / "dataset_dict.json").is_file() or (source / "state.json").is_file()


def _rows_of_batches(batches: Any, name: str, number: int) -> Iterator[Row | Rejected]:
    import pyarrow

    try:
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                for value in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                    yield Row(key=f"{name}#{number}", number=number, value=value)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        yield Rejected(
            key=f"{name}#{number}",
            reason=RejectionReason.DAMAGED_FILE,
            message=f"The table {name} cannot be read from row {number} on: {error}.",
        )


def _open_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"The file {path} is no Parquet file: {error}.") from error


def _group_size_bytes(group: Any, columns: Sequence[str]) -> int:
    """Adds up what a row group takes in the file for some columns, with all that is in them."""
    size_bytes = 0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema.split(".")[0] in columns:
            size_bytes += column.total_compressed_size
    return size_bytes
