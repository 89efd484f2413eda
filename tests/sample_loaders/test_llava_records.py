import pytest

from sample_loaders.conversation import ConversationSample, Turn, parse_llava
from sample_loaders.errors import BadSample, Reason


def turns(*pairs):
    return [{"from": role, "value": value} for role, value in pairs]


def parse(record):
    return parse_llava(record, key="f#3", source="f")


def test_text_only_record():
    sample = parse({"id": 1, "conversations": turns(("human", "Q"), ("gpt", "A"))})
    assert sample == ConversationSample(
        key="f#3",
        source="f",
        turns=(Turn(role="user", text="Q"), Turn(role="assistant", text="A")),
        images=(),
    )


@pytest.mark.parametrize(
    ("human", "gpt", "system"),
    [("human", "gpt", "system"), ("user", "assistant", "system"), ("ユーザー", "gpt", "システム")],
)
def test_role_names(human, gpt, system):
    record = {"conversations": turns((system, "S"), (human, "Q"), (gpt, "A"))}
    assert [turn.role for turn in parse(record).turns] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    "given",
    [{"image": "a.png"}, {"image": ["a.png"]}, {"images": ["a.png"]}, {"images": "a.png"}],
)
def test_forms_of_one_image(given):
    record = {**given, "conversations": turns(("human", "<image>\nQ"), ("gpt", "A"))}
    sample = parse(record)
    assert sample.images == ("a.png",)
    assert sample.turns[0].text == "<image>\nQ"


@pytest.mark.parametrize(
    "absent", [{}, {"image": None}, {"images": []}, {"image": None, "images": []}]
)
def test_forms_of_no_image(absent):
    assert parse({**absent, "conversations": turns(("human", "Q"), ("gpt", "A"))}).images == ()


def test_images_in_any_turn_keep_their_places():
    record = {
        "image": ["a", "b", "c"],
        "conversations": turns(
            ("human", "x <image> y <image>"), ("gpt", "A"), ("human", "<image>"), ("gpt", "B")
        ),
    }
    sample = parse(record)
    assert sample.images == ("a", "b", "c")
    assert [turn.text for turn in sample.turns] == ["x <image> y <image>", "A", "<image>", "B"]


def test_images_without_any_placeholder_go_before_the_first_question():
    record = {
        "image": ["a", "b"],
        "conversations": turns(("system", "S"), ("human", "Q"), ("gpt", "A")),
    }
    assert parse(record).turns[1].text == "<image>\n<image>\nQ"
    assert parse(record).turns[0].text == "S"


GOOD = turns(("human", "Q"), ("gpt", "A"))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], Reason.WRONG_TYPE),
        ("text", Reason.WRONG_TYPE),
        ({}, Reason.MISSING_KEY),
        ({"conversations": {}}, Reason.WRONG_TYPE),
        ({"conversations": ["Q"]}, Reason.WRONG_TYPE),
        ({"conversations": [{"from": "human"}]}, Reason.MISSING_KEY),
        ({"conversations": [{"value": "Q"}]}, Reason.MISSING_KEY),
        ({"conversations": [{"from": "human", "value": 3}]}, Reason.WRONG_TYPE),
        ({"conversations": [{"from": None, "value": "Q"}]}, Reason.WRONG_TYPE),
        ({"conversations": turns(("human", "Q"), ("bot", "A"))}, Reason.UNKNOWN_ROLE),
        ({"conversations": []}, Reason.EMPTY_CONVERSATION),
        ({"conversations": turns(("system", "S"))}, Reason.EMPTY_CONVERSATION),
        ({"conversations": turns(("gpt", "A"), ("human", "Q"))}, Reason.NOT_FROM_HUMAN),
        (
            {"conversations": turns(("human", "Q"), ("human", "Q"), ("gpt", "A"))},
            Reason.NOT_ALTERNATING,
        ),
        (
            {"conversations": turns(("human", "Q"), ("gpt", "A"), ("gpt", "A"))},
            Reason.NOT_ALTERNATING,
        ),
        (
            {"conversations": turns(("human", "Q"), ("system", "S"), ("gpt", "A"))},
            Reason.NOT_ALTERNATING,
        ),
        ({"conversations": turns(("human", "Q"))}, Reason.NO_FINAL_ANSWER),
        (
            {"conversations": turns(("human", "Q"), ("gpt", "A"), ("human", "Q"))},
            Reason.NO_FINAL_ANSWER,
        ),
        ({"conversations": turns(("human", "Q"), ("gpt", " \n"))}, Reason.EMPTY_ANSWER),
        ({"image": 3, "conversations": GOOD}, Reason.WRONG_TYPE),
        ({"image": [3], "conversations": GOOD}, Reason.WRONG_TYPE),
        ({"image": "", "conversations": GOOD}, Reason.WRONG_TYPE),
        ({"image": "a", "images": ["a"], "conversations": GOOD}, Reason.WRONG_TYPE),
        (
            {"conversations": turns(("human", "<image>"), ("gpt", "A"))},
            Reason.IMAGE_COUNT,
        ),
        (
            {"image": ["a", "b"], "conversations": turns(("human", "<image>Q"), ("gpt", "A"))},
            Reason.IMAGE_COUNT,
        ),
        (
            {"image": "a", "conversations": turns(("human", "<image>"), ("gpt", "<image>"))},
            Reason.IMAGE_COUNT,
        ),
    ],
)
def test_bad_records_are_named(record, reason):
    with pytest.raises(BadSample) as caught:
        parse(record)
    assert caught.value.reason == reason.value
    assert caught.value.message.endswith(".")
    assert str(caught.value) == f"{reason.value}: {caught.value.message}"
