"""LLaVA JSON: `{"id", "image", "conversations"}` records beside a folder of images.

The form is that of github.com/haotian-liu/LLaVA and of the files that the data cards of Heron and
llm-jp name (LLaVA-Pretrain, llava-instruct-ja, llava-instruct-v1_5-en-subset-358k,
japanese-photos-conversation, ja-vg-vqa-conversation, LLaVA-Pretrain-JA, the first stage's Japanese
image-text pairs). Records are one array, or one per line; `image` is a name, a list of names, or
missing where a conversation is of text alone, and `images` is another name of it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from preparation.formats.conversations import conversation_of_turns
from preparation.formats.fields import identity
from preparation.formats.files import find_files, own_folder
from preparation.formats.images import read_loose
from preparation.formats.json_rows import JSON_SUFFIXES
from preparation.formats.loose_rows import LooseImageRows
from preparation.formats.rows import Row, RowReader
from preparation.source import RawSample, Reader, ReaderOptions
from sample_loaders.conversation import parse_llava


def open_llava(source: Path, options: ReaderOptions) -> Reader:
    """Opens a JSON or JSONL file, or a folder of them.

    Raises:
        ValueError: There is no such file, or none of its first records has conversations.
    """
    files = [source] if source.is_file() else find_files(source, JSON_SUFFIXES)
    folder = options.image_folder or own_folder(source)
    rows = LooseImageRows(source, files, folder)
    first = rows.first_value()
    if not isinstance(first, Mapping) or "conversations" not in first:
        raise ValueError(
            f'The source {source} has no record with "conversations", which LLaVA JSON has.'
        )
    return RowReader(rows, partial(_convert, folder=folder))


def _convert(row: Row, folder: Path) -> Iterator[RawSample]:
    sample = parse_llava(row.value, row.key, row.key)
    yield RawSample(
        key=row.key,
        record={
            "conversations": conversation_of_turns(sample.turns),
            **identity(row.value, ("id",)),
        },
        images=tuple(read_loose(folder, [name]) for name in sample.images),
    )
