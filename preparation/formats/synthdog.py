"""SynthDoG: rendered pages and their text, as a conversation that asks to read the page.

huggingface.co/datasets/naver-clova-ix/synthdog-ja and synthdog-en are Parquet files of `image` and
`ground_truth`, JSON text of `{"gt_parse": {"text_sequence": ...}}`. The question is in Japanese
where the text has Japanese characters, else in English, and one of a few by the row's number. For
llm-jp's models the words of the sequence, which spaces divide, were put on lines of their own by
github.com/u8-zawa/llm-jp-VILA; here the answer is the sequence as it is.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from preparation.formats.conversations import conversation_about_image
from preparation.formats.fields import as_object, plain_text, text_field
from preparation.formats.files import own_folder
from preparation.formats.images import embedded
from preparation.formats.rows import Refusal, Row, RowReader
from preparation.formats.tables import open_table
from preparation.reasons import RejectionReason
from preparation.source import RawSample, Reader, ReaderOptions

_COLUMNS = ("image", "ground_truth")
_JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff66-\uff9f]")
_QUESTIONS_JA = (
    "この画像にある文字を読み取ってください。",
    "画像の文章をそのまま書き写してください。",
    "ここには何と書いてありますか。",
    "画像中の文字をテキストにしてください。",
)
_QUESTIONS_EN = (
    "Read the text in this image.",
    "Write down the text of the picture as it stands.",
    "What is written here?",
    "Turn the characters in the image into text.",
)


def open_synthdog(source: Path, options: ReaderOptions) -> Reader:
    """Opens Parquet files, or a folder that `save_to_disk` wrote.

    Raises:
        ValueError: The rows have no image or no ground truth.
    """
    folder = options.image_folder or own_folder(source)
    rows = open_table(source, _COLUMNS, _COLUMNS, folder)
    return RowReader(rows, partial(_convert, folder=folder))


def _convert(row: Row, folder: Path) -> Iterator[RawSample]:
    record = as_object(row.value)
    truth = text_field(record, "ground_truth")
    try:
        parsed = as_object(json.loads(truth), "The ground truth")
    except (ValueError, RecursionError) as error:
        raise Refusal(
            RejectionReason.INVALID_RECORD, f"The ground truth is not JSON: {error}."
        ) from error
    answer = plain_text(text_field(as_object(parsed.get("gt_parse"), "gt_parse"), "text_sequence"))
    questions = _QUESTIONS_JA if _JAPANESE.search(answer) else _QUESTIONS_EN
    question = questions[row.number % len(questions)]
    yield RawSample(
        key=row.key,
        record={"conversations": conversation_about_image([(question, answer)])},
        images=(embedded(record.get("image"), row.key, folder),),
    )
