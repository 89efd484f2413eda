"""Documents from records."""

import pytest

from sample_loaders.conversation import ConversationSample
from sample_loaders.document import DocumentSample, parse_record
from sample_loaders.errors import BadSample, Reason


def test_a_document():
    record = {"document": "<image>\nA. <image>\nB.", "images": ["0.jpg", "1.png"], "max_tiles": 6}
    assert parse_record(record, "k", "s") == DocumentSample(
        key="k",
        source="s",
        text="<image>\nA. <image>\nB.",
        images=("0.jpg", "1.png"),
        max_tiles=6,
    )


def test_a_text_alone_and_a_conversation():
    assert parse_record({"document": "Only text."}, "k", "s").images == ()
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    sample = parse_record({"conversations": turns, "max_tiles": 1}, "k", "s")
    assert isinstance(sample, ConversationSample)
    assert sample.max_tiles == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"document": 5}, Reason.WRONG_TYPE),
        ({"document": " \n"}, Reason.EMPTY_DOCUMENT),
        ({"document": "<image>\n", "images": ["0.jpg"]}, Reason.EMPTY_DOCUMENT),
        ({"document": "<image> A", "images": []}, Reason.IMAGE_COUNT),
        ({"document": "A", "images": ["0.jpg"]}, Reason.IMAGE_COUNT),
        ({"document": "A", "conversations": []}, Reason.WRONG_TYPE),
        ({"document": "A", "max_tiles": 0}, Reason.WRONG_TYPE),
        ({"document": "A", "max_tiles": True}, Reason.WRONG_TYPE),
        ({"document": "A", "max_tiles": "6"}, Reason.WRONG_TYPE),
    ],
)
def test_what_is_no_document(record, reason):
    with pytest.raises(BadSample) as raised:
        parse_record(record, "k", "s")
    assert raised.value.reason == reason
