"""Opens whichever kind of table a Hugging Face data set was stored in."""

from collections.abc import Sequence
from pathlib import Path

from preparation.formats.files import find_files, own_folder
from preparation.formats.json_rows import JSON_SUFFIXES, JsonRows
from preparation.formats.loose_rows import LooseImageRows
from preparation.formats.table_rows import ArrowRows, ParquetRows, saved_dataset


def open_table(
    source: Path, columns: Sequence[str], needed: Sequence[str], image_folder: Path | None = None
) -> ParquetRows | ArrowRows | JsonRows:
    """Opens a folder of `save_to_disk`, Parquet files, or else JSON files.

    Args:
        source: A folder, or one file.
        columns: What is read of tables.
        needed: What every record must have; looked for in the first one.
        image_folder: Where JSON records have their images; None takes the source's own folder.

    Raises:
        ValueError: The source holds no such file, or its records lack what is needed.
    """
    rows: ParquetRows | ArrowRows | JsonRows
    if saved_dataset(source):
        rows = ArrowRows(source, columns)
        found = rows.column_names()
    elif files := find_files(source, (".parquet",)):
        rows = ParquetRows(source, files, columns)
        found = rows.column_names()
    elif files := find_files(source, JSON_SUFFIXES):
        rows = LooseImageRows(source, files, image_folder or own_folder(source))
        first = rows.first_value()
        found = set(first) if isinstance(first, dict) else set()
    else:
        raise ValueError(
            f"The source {source} holds neither a saved data set nor .parquet or .jsonl files."
        )
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"The records of {source} have no {' and no '.join(missing)}, which this format needs."
        )
    return rows
