"""A data set of the Hugging Face hub with `conversations` in LLaVA's form and its own images.

It is a folder that `datasets.Dataset.save_to_disk` (or that of a `DatasetDict`) wrote, or Parquet
files; huggingface.co/docs/datasets says how an image column is stored: `{"bytes", "path"}`. The
column is `image` or `images`, of one image or of a list; images without bytes are looked for by
their path in the image folder.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from preparation.formats.conversations import conversation_of_turns
from preparation.formats.fields import as_object, identity
from preparation.formats.files import own_folder
from preparation.formats.images import embedded, read_loose
from preparation.formats.rows import Row, RowReader
from preparation.formats.tables import open_table
from preparation.source import RawImage, RawSample, Reader, ReaderOptions
from sample_loaders.conversation import parse_llava

_COLUMNS = ("id", "image", "images", "conversations")


def open_hf(source: Path, options: ReaderOptions) -> Reader:
    """Opens a saved data set or Parquet files.

    Raises:
        ValueError: The source is neither, or has no conversations.
    """
    folder = options.image_folder or own_folder(source)
    rows = open_table(source, _COLUMNS, ("conversations",), folder)
    return RowReader(rows, partial(_convert, folder=folder))


def _convert(row: Row, folder: Path) -> Iterator[RawSample]:
    record = as_object(row.value)
    given: list[Any] = []
    for name in ("image", "images"):
        value = record.get(name)
        given += value if isinstance(value, list) else [] if value is None else [value]
    images = [_read(value, f"{row.key}/{number}", folder) for number, value in enumerate(given)]
    llava = {
        "conversations": record.get("conversations"),
        "images": [str(number) for number in range(len(images))],
    }
    sample = parse_llava(llava, row.key, row.key)
    yield RawSample(
        key=row.key,
        record={
            "conversations": conversation_of_turns(sample.turns),
            **identity(record, ("id",)),
        },
        images=tuple(images),
    )


def _read(value: Any, name: str, folder: Path) -> RawImage:
    if isinstance(value, str):
        return read_loose(folder, [value])
    return embedded(value, name, folder)
