"""AI2D: diagrams of school books, with questions of which one answer is right.

huggingface.co/datasets/lmms-lab/ai2d, whose 3,088 questions are the 3.09 k of Heron-NVILA, is
Parquet of `question`, `options` (texts), `answer` (the number of the right one, from 0, as text)
and `image`. The conversation lists the options with letters and answers with a letter.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from preparation.formats.conversations import conversation_about_image
from preparation.formats.fields import as_object, identity, plain_text, text_field, texts_field
from preparation.formats.files import own_folder
from preparation.formats.images import embedded
from preparation.formats.rows import Refusal, Row, RowReader
from preparation.formats.tables import open_table
from preparation.reasons import RejectionReason
from preparation.source import RawSample, Reader, ReaderOptions

_NEEDED = ("question", "options", "answer", "image")
_INSTRUCTION = "Answer with the letter of the right option."


def open_ai2d(source: Path, options: ReaderOptions) -> Reader:
    """Opens Parquet files, or a folder that `save_to_disk` wrote.

    Raises:
        ValueError: The rows have no question, options, answer or image.
    """
    folder = options.image_folder or own_folder(source)
    rows = open_table(source, ("id", *_NEEDED), _NEEDED, folder)
    return RowReader(rows, partial(_convert, folder=folder))


def _convert(row: Row, folder: Path) -> Iterator[RawSample]:
    record = as_object(row.value)
    options = texts_field(record, "options")
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise Refusal(RejectionReason.INVALID_RECORD, f"The question has {len(options)} option(s).")
    answer = _number(record.get("answer"))
    if answer is None or not 0 <= answer < len(options):
        raise Refusal(
            RejectionReason.INVALID_RECORD,
            f'The "answer" {record.get("answer")!r} is not the number of one of {len(options)} '
            f"options.",
        )
    lines = [plain_text(text_field(record, "question"))]
    lines += [
        f"{letter}. {plain_text(option)}"
        for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    question = "\n".join([*lines, _INSTRUCTION])
    yield RawSample(
        key=row.key,
        record={
            "conversations": conversation_about_image([(question, ascii_uppercase[answer])]),
            **identity(record, ("id",)),
        },
        images=(embedded(record.get("image"), row.key, folder),),
    )


def _number(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 4:
        return int(value)
    return None
