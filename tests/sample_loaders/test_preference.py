"""Records of a chosen and a rejected answer."""

import pytest

from sample_loaders.conversation import ConversationSample, Turn
from sample_loaders.document import parse_record
from sample_loaders.errors import BadSample, Reason
from sample_loaders.preference import PreferenceSample

QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}


def record(**changes):
    content = {"image": "a.png", "conversations": [QUESTION], "chosen": "A cat.", "rejected": "No."}
    return {name: value for name, value in (content | changes).items() if value is not None}


def parsed(**changes):
    return parse_record(record(**changes), "k", "s")


def test_both_conversations_have_all_turns_and_images():
    earlier = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    sample = parsed(
        image=["a.png", "b.png"],
        conversations=[{"from": "system", "value": "S"}, *earlier, QUESTION],
        rejected={"from": "gpt", "value": "A dog."},
        max_tiles=3,
    )
    assert isinstance(sample, PreferenceSample)
    turns = (
        Turn(role="system", text="S"),
        Turn(role="user", text="<image>\nQ"),
        Turn(role="assistant", text="A"),
        Turn(role="user", text="<image>\nWhat is it?"),
    )
    assert sample.conversations() == tuple(
        ConversationSample(
            key="k",
            source="s",
            turns=(*turns, Turn(role="assistant", text=answer)),
            images=("a.png", "b.png"),
            max_tiles=3,
            learns_last_answer_only=True,
        )
        for answer in ("A cat.", "A dog.")
    )


def test_an_image_without_a_placeholder_goes_to_the_first_question():
    sample = parsed(conversations=[{"from": "ユーザー", "value": "Q"}])
    assert sample.turns == (Turn(role="user", text="<image>\nQ"),)


def test_a_conversation_that_names_what_was_chosen_is_one():
    """Some published files have such keys beside whole conversations."""
    whole = parsed(conversations=[QUESTION, {"from": "gpt", "value": "A"}], rejected=None)
    assert isinstance(whole, ConversationSample)
    assert not whole.learns_last_answer_only


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"rejected": None}, Reason.MISSING_KEY, 'no "rejected"'),
        ({"chosen": None}, Reason.MISSING_KEY, 'no "chosen"'),
        ({"conversations": None}, Reason.MISSING_KEY, 'no "conversations"'),
        ({"chosen": ["A cat."]}, Reason.WRONG_TYPE, '"chosen" is neither'),
        ({"chosen": {"from": "gpt", "value": 3}}, Reason.WRONG_TYPE, '"chosen" is neither'),
        ({"rejected": {"from": "human", "value": "A"}}, Reason.UNKNOWN_ROLE, '"rejected" is from'),
        ({"rejected": " \n"}, Reason.EMPTY_ANSWER, '"rejected" has no text'),
        ({"rejected": "A cat."}, Reason.EQUAL_ANSWERS, "are the same"),
        ({"rejected": "<image>"}, Reason.IMAGE_COUNT, '"rejected" holds <image>'),
    ],
)
def test_what_cannot_be_used(changes, reason, words):
    with pytest.raises(BadSample, match=words) as caught:
        parsed(**changes)
    assert caught.value.reason == reason
