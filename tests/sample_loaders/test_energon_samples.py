import json

import pytest

from sample_loaders.energon import cook_parts, read_vqa
from sample_loaders.errors import BadSample

TURNS = [
    {"from": "human", "value": "<image>\n何が写っていますか?"},
    {"from": "gpt", "value": "猫です。"},
]


def as_json(value):
    return json.dumps(value, ensure_ascii=False).encode()


def question(images, text="What?"):
    return [{"from": "human", "value": "<image>\n" * images + text}, TURNS[1]]


def cook(parts):
    return cook_parts({"__key__": "a.tar/1", **parts}, "set/a.tar/1", "set")


def reason(action, *arguments, **options):
    with pytest.raises(BadSample) as caught:
        action(*arguments, **options)
    assert caught.value.message.endswith(".")
    return caught.value.reason


def test_the_list_of_conversations_alone_takes_the_image_beside_it():
    sample = cook({"json": as_json(TURNS), "jpg": b"pixels"})
    assert sample.sample.key == "set/a.tar/1"
    assert sample.sample.source == "set"
    assert [(turn.role, turn.text) for turn in sample.sample.turns] == [
        ("user", "<image>\n何が写っていますか?"),
        ("assistant", "猫です。"),
    ]
    assert sample.sample.images == ("jpg",)
    assert sample.images == {"jpg": b"pixels"}


def test_images_come_in_the_order_of_their_numbers():
    names = ["10.jpg", "2.png", "0.webp", "1.JPEG"]
    parts = {name: name.encode() for name in names}
    sample = cook({"json": as_json(question(4)), **parts, "txt": b"no image"})
    assert sample.sample.images == ("0.webp", "1.JPEG", "2.png", "10.jpg")
    assert sample.images == parts


@pytest.mark.parametrize("name", ["image", "images"])
def test_a_whole_record_may_name_its_images_by_their_old_paths(name):
    record = {name: ["coco/7.jpg", "coco/5.jpg"], "conversations": question(2)}
    sample = cook({"json": as_json(record), "0.jpg": b"7", "1.jpg": b"5"})
    assert sample.sample.images == ("0.jpg", "1.jpg")


def test_names_of_parts_in_a_record_choose_the_order():
    record = {"images": ["1.jpg", "0.jpg"], "conversations": question(2)}
    sample = cook({"json": as_json(record), "0.jpg": b"a", "1.jpg": b"b"})
    assert sample.sample.images == ("1.jpg", "0.jpg")


def test_a_record_without_image_names_takes_what_is_there():
    for record in ({"conversations": question(0)}, {"image": None, "conversations": question(0)}):
        assert cook({"json": as_json(record)}).sample.images == ()
        sample = cook({"json": as_json(record), "png": b"x"}).sample
        assert sample.images == ("png",)
        assert sample.turns[0].text == "<image>\nWhat?"


def test_parts_that_do_not_fit_are_bad_samples():
    assert reason(cook, {"jpg": b"x"}) == "missing_key"
    assert reason(cook, {"json": b"{"}) == "invalid_json"
    assert reason(cook, {"json": b"\xff"}) == "invalid_json"
    assert reason(cook, {"json": b"3"}) == "wrong_type"
    assert reason(cook, {"json": as_json(TURNS)}) == "image_count"
    record = {"images": ["a", "b"], "conversations": question(2)}
    assert reason(cook, {"json": as_json(record), "jpg": b"x"}) == "image_count"
    record = {"images": [], "conversations": question(0)}
    assert reason(cook, {"json": as_json(record), "jpg": b"x"}) == "image_count"


def vqa(image="pixels", context="What?", answers="A cat.", weights=None):
    return read_vqa(image, context, answers, weights, key="k", source="s")


def texts(sample):
    return [turn.text for turn in sample.sample.turns]


def test_lists_of_questions_and_answers_become_turns():
    sample = vqa(context=["<image>\nWhat?", "Where?"], answers=["A cat.", "There."])
    assert texts(sample) == ["<image>\nWhat?", "A cat.", "Where?", "There."]
    assert [turn.role for turn in sample.sample.turns] == ["user", "assistant"] * 2
    assert [sample.images[name] for name in sample.sample.images] == ["pixels"]


def test_one_question_takes_its_best_answer():
    assert texts(vqa()) == ["<image>\nWhat?", "A cat."]
    assert texts(vqa(answers=["A cat.", "A dog."]))[1] == "A cat."
    assert texts(vqa(answers=["A cat.", "A dog."], weights=[0.2, 0.8]))[1] == "A dog."


def test_images_of_vqa_samples_may_be_none_or_several():
    assert vqa(image=None).sample.images == ()
    sample = vqa(image=["first", "second"], context="<image><image>Which?")
    assert [sample.images[name] for name in sample.sample.images] == ["first", "second"]


def test_fields_that_do_not_fit_are_bad_samples():
    assert reason(vqa, answers=None) == "no_final_answer"
    assert reason(vqa, answers=[]) == "no_final_answer"
    assert reason(vqa, answers=[" "]) == "empty_answer"
    assert reason(vqa, answers=[3]) == "wrong_type"
    assert reason(vqa, context=7) == "wrong_type"
    assert reason(vqa, answers=["a"], weights=[1, 2]) == "wrong_type"
    assert reason(vqa, context=["a", "b"], answers=["c"]) == "not_alternating"
    assert reason(vqa, context=["a"], answers=None) == "wrong_type"
    assert reason(vqa, image=None, context="<image>?") == "image_count"
