"""Records with another placeholder, and images matched to texts."""

import pytest

from sample_loaders.document import parse_record
from sample_loaders.energon import cook_parts, read_matched, read_vqa
from sample_loaders.errors import BadSample, Reason
from sample_loaders.placeholders import with_our_placeholders


def turns(question, answer="A"):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def test_another_placeholder_in_each_form():
    conversation = {"image": "a.png", "conversations": turns("[IMG] Q [IMG]x")}
    changed = with_our_placeholders(conversation, "[IMG]")
    assert changed["conversations"][0]["value"] == "<image> Q <image>x"
    assert conversation["conversations"][0]["value"] == "[IMG] Q [IMG]x"
    document = {"document": "[IMG]\nText", "images": ["a.png"]}
    sample = parse_record(with_our_placeholders(document, "[IMG]"), "k", "s")
    assert sample.text == "<image>\nText"
    preference = {"conversations": turns("[IMG]")[:1], "chosen": "a", "rejected": "b", "image": "i"}
    sample = parse_record(with_our_placeholders(preference, "[IMG]"), "k", "s")
    assert sample.turns[0].text == "<image>"
    preference["rejected"] = {"from": "gpt", "value": "b [IMG]"}
    changed = with_our_placeholders(preference, "[IMG]")
    with pytest.raises(BadSample, match='"rejected" holds <image>'):
        parse_record(changed, "k", "s")


def test_our_placeholder_beside_another_is_refused():
    record = {"image": "a.png", "conversations": turns("[IMG] says <image>")}
    with pytest.raises(BadSample, match="holds <image>, while '\\[IMG\\]' stands for images"):
        with_our_placeholders(record, "[IMG]")


@pytest.mark.parametrize("record", [None, [1], {"conversations": 3}, {"conversations": [None, {}]}])
def test_what_is_no_record_is_left_to_the_parser(record):
    assert with_our_placeholders(record, "[IMG]") == record


def test_shards_with_another_placeholder():
    part = (
        b'{"conversations": [{"from": "human", "value": "[IMG]Q"}, {"from": "gpt", "value": "A"}]}'
    )
    loaded = cook_parts({"json": part, "jpg": b"1"}, "k", "s", "[IMG]")
    assert loaded.sample.turns[0].text == "<image>Q"
    loaded = read_vqa(b"1", "[IMG]Q", ["A"], None, key="k", source="s", image_token="[IMG]")
    assert loaded.sample.turns[0].text == "<image>Q"


def matched(texts, places, images="abc", follows=True):
    loaded = read_matched(
        list(images), texts, places, image_following_text=follows, key="k", source="s"
    )
    return loaded.sample.text, list(loaded.images.values())


def test_images_after_their_texts():
    # The images of a text keep their order; texts without one are joined by a space.
    assert matched(["one", "two", "three", "four"], [3, 0, 0]) == (
        "one\n<image>\n<image>\ntwo three four\n<image>",
        ["b", "c", "a"],
    )


def test_images_before_their_texts():
    assert matched(["one", "two", "three"], [1, 2, 1], follows=False) == (
        "one <image>\n<image>\ntwo <image>\nthree",
        ["a", "c", "b"],
    )


@pytest.mark.parametrize(
    ("texts", "places", "reason"),
    [
        (["one"], None, Reason.IMAGE_COUNT),
        (["one"], [0, 0], Reason.IMAGE_COUNT),
        (["one"], [0, 0, 1], Reason.WRONG_TYPE),
        (["<image>"], [0, 0, 0], Reason.IMAGE_COUNT),
        ([" "], [0, 0, 0], Reason.EMPTY_DOCUMENT),
        ([3], [0, 0, 0], Reason.WRONG_TYPE),
    ],
)
def test_what_does_not_match(texts, places, reason):
    with pytest.raises(BadSample) as caught:
        matched(texts, places)
    assert caught.value.reason == reason
