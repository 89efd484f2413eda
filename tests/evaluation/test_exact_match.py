import json

import pytest
from PIL import Image

import evaluation.exact_match as module
from evaluation.exact_match import exact_match, prepare, read_samples, shuffled_images
from evaluation.families import FAMILIES
from evaluation.generation import load
from evaluation.tasks import get_task


def record(sample_id, images, *turns):
    speakers = ["human", "gpt"] * len(turns)
    conversations = [
        {"from": speaker, "value": text} for speaker, text in zip(speakers, turns, strict=False)
    ]
    return {"id": sample_id, "image": images, "conversations": conversations}


def write(folder, *records):
    for one in records:
        names = one.get("image") or []
        for name in [names] if isinstance(names, str) else names:
            Image.new("RGB", (56, 56), "white").save(folder / name)
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def reading_model(monkeypatch, answers_of):
    """Replaces the model by a function from a query to its answer."""
    monkeypatch.setattr(
        module,
        "answer",
        lambda model, processor, queries, *rest: [answers_of(query) for query in queries],
    )


def test_score_and_rows(tmp_path, monkeypatch):
    data = write(
        tmp_path,
        record("a", "3.png", "<image>\n何ですか?", " 3\n"),
        record("b", "4.png", "<image>\n何ですか?", "45"),
        record("c", None, "3?", "3"),
    )
    reading_model(monkeypatch, lambda q: q.images[0][-5] if q.images else "3 ")
    result = exact_match(None, None, data, tmp_path)
    assert [(row.id, row.answer, row.truth, row.correct) for row in result.rows] == [
        ("a", "3", "3", True),
        ("b", "4", "45", False),
        ("c", "3 ", "3", False),  # answers come stripped from the model
    ]
    assert result.rows[0].question == "<image>\n何ですか?"
    assert result.rows[0].images == (str(tmp_path / "3.png"),)
    assert result.score == pytest.approx(1 / 3)
    assert exact_match(None, None, data, tmp_path, limit=1).score == 1


def test_the_last_question_is_asked_with_the_conversation_before_it(tmp_path):
    one = record("a", ["1.png", "2.png"], "<image>first", "one", "<image>second", "two")
    one["conversations"].insert(0, {"from": "system", "value": "s"})
    (sample,) = read_samples(write(tmp_path, one), tmp_path)
    assert sample.truth == "two"
    assert sample.query.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "<image>first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "<image>second"},
    ]
    assert sample.query.images == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]


def test_images_without_placeholder_come_first(tmp_path):
    one = record("a", ["1.png", "2.png"], "first", "one", "second", "two")
    (sample,) = read_samples(write(tmp_path, one), tmp_path)
    contents = [message["content"] for message in sample.query.messages]
    assert contents == ["<image>\n<image>\nfirst", "one", "second"]


def test_shuffled_images_are_those_of_another_sample(tmp_path):
    records = [record(str(i), f"{i}.png", "q", "a") for i in range(9)]
    records += [record(f"pair{i}", [f"{i}a.png", f"{i}b.png"], "q", "a") for i in range(4)]
    records += [record("text", None, "q", "a")]
    samples = read_samples(write(tmp_path, *records), tmp_path)
    for seed in range(20):
        shuffled = shuffled_images(samples, seed)
        for before, after in zip(samples, shuffled, strict=True):
            assert (before.sample_id, before.truth) == (after.sample_id, after.truth)
            assert before.query.messages == after.query.messages
            assert len(before.query.images) == len(after.query.images)
            assert not before.query.images or before.query.images != after.query.images
        images = [tuple(sample.query.images) for sample in samples]
        assert sorted(tuple(sample.query.images) for sample in shuffled) == sorted(images)
        assert shuffled_images(samples, seed) == shuffled
    assert shuffled_images(samples, 0) != shuffled_images(samples, 1)


def test_a_model_that_reads_images_fails_when_they_are_shuffled(tmp_path, monkeypatch):
    data = write(tmp_path, *[record(str(i), f"{i}.png", "<image>?", str(i)) for i in range(10)])
    reading_model(monkeypatch, lambda query: query.images[0][-5])
    assert exact_match(None, None, data, tmp_path).score == 1
    assert exact_match(None, None, data, tmp_path, shuffle_images=True).score == 0


def test_a_single_sample_cannot_be_shuffled(tmp_path):
    data = write(tmp_path, record("only", "1.png", "q", "a"))
    with pytest.raises(ValueError, match="'only' is the only one with 1 images"):
        shuffled_images(read_samples(data, tmp_path), 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "data.jsonl:1 is not JSON"),
        ("3", "data.jsonl:1 has no conversation"),
        ("[]", "has no record"),
        ("[3]", "record 1 of .*data.jsonl has no conversation"),
        ("[{]", "data.jsonl is not a JSON array"),
        (json.dumps(record("a", None, "q")), "has no conversation"),
        (json.dumps(record("a", None, "q", "a", "q")), "must alternate"),
        (
            json.dumps({"conversations": [{"from": "robot", "value": "q"}] * 2}),
            "a turn from 'robot'",
        ),
        (json.dumps(record("a", "missing.png", "q", "a")), "which must be a file"),
        (json.dumps(record("a", 3, "q", "a")), "has the images 3"),
        (json.dumps(record("a", [3], "q", "a")), r"has the images \[3\]"),
        (json.dumps(record("a", "1", "q", "a") | {"images": ["1"]}), 'both "image" and "images"'),
        ("", "has no record"),
    ],
)
def test_malformed_records(tmp_path, line, message):
    (tmp_path / "data.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message) as refusal:
        read_samples(tmp_path / "data.jsonl", tmp_path)
    assert str(refusal.value).startswith("data: ")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_as_its_lines_would_be(tmp_path, indent):
    records = [record(str(i), f"{i}.png", "<image>?", str(i)) for i in range(3)]
    del records[1]["id"]
    lines = read_samples(write(tmp_path, *records), tmp_path)
    array = tmp_path / "data.json"
    array.write_text("\n \t" + json.dumps(records, indent=indent), encoding="utf-8")
    assert read_samples(array, tmp_path) == lines
    assert [sample.sample_id for sample in lines] == ["0", "2", "2"]
    assert read_samples(array, tmp_path, limit=2) == lines[:2]


@pytest.mark.parametrize("names", ["1.png", ["1.png"], ["1.png", "2.png"]])
def test_images_is_another_name_of_image(tmp_path, names):
    one = record("a", names, "q", "a")
    expected = read_samples(write(tmp_path, one), tmp_path)
    assert len(expected[0].query.images) == (2 if len(names) == 2 else 1)
    one["images"] = one.pop("image")
    (tmp_path / "data.jsonl").write_text(json.dumps(one), encoding="utf-8")
    assert read_samples(tmp_path / "data.jsonl", tmp_path) == expected
    one["image"] = None
    (tmp_path / "data.jsonl").write_text(json.dumps(one), encoding="utf-8")
    assert read_samples(tmp_path / "data.jsonl", tmp_path) == expected


@pytest.mark.parametrize("name", ["missing.jsonl", "folder", "latin.jsonl"])
def test_unreadable_files(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(ValueError, match=f"^data: .*{name} cannot be read"):
        read_samples(tmp_path / name, tmp_path)


def test_a_limit_must_be_positive(tmp_path):
    data = write(tmp_path, record("a", None, "q", "a"))
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"limit: {limit} is not allowed"):
            read_samples(data, tmp_path, limit)


def test_with_a_real_model(write_nano_directory, tmp_path):
    directory = tmp_path / "model"
    write_nano_directory(directory)
    model, processor = load(directory)
    data = write(tmp_path, *[record(str(i), f"{i}.png", "<image>?", "x") for i in range(3)])
    first = exact_match(model, processor, data, tmp_path, max_new_tokens=4, batch_size=2)
    answers = {row.answer for row in first.rows}
    assert len(answers) == 1  # the images are the same
    truth = answers.pop()
    data = write(tmp_path, *[record(str(i), f"{i}.png", "<image>?", truth) for i in range(3)])
    task = get_task("exact_match")
    again = task.score(model, processor, task.prepare(data, tmp_path), max_new_tokens=4)
    assert (first.score, again.score) == (0, 1)


def test_role_names_are_those_of_the_training_data():
    from sample_loaders.conversation import ROLE_NAMES

    assert dict(ROLE_NAMES) == module._ROLES


def test_japanese_roles(tmp_path):
    one = record("a", None, "q", "a", "r", "b")
    names = ["システム", "ユーザー", "アシスタント", "ユーザー", "アシスタント"]
    one["conversations"].insert(0, {"from": "system", "value": "s"})
    for turn, name in zip(one["conversations"], names, strict=True):
        turn["from"] = name
    (sample,) = read_samples(write(tmp_path, one), tmp_path)
    roles = [message["role"] for message in sample.query.messages]
    assert roles == ["system", "user", "assistant", "user"]
    assert sample.truth == "b"


def test_prepare_is_read_and_shuffle(tmp_path):
    data = write(tmp_path, *[record(str(i), f"{i}.png", "<image>?", str(i)) for i in range(5)])
    samples = read_samples(data, tmp_path)
    assert prepare(data, tmp_path) == samples
    assert prepare(data, tmp_path, 3) == samples[:3]
    assert prepare(data, tmp_path, shuffle_images=True, seed=4) == shuffled_images(samples, 4)


@pytest.mark.parametrize("damage", ["no image", "cut short", "empty"])
def test_a_damaged_image_shows_before_the_model(tmp_path, damage):
    data = write(tmp_path, *[record(str(i), f"{i}.jpg", "<image>?", "a") for i in range(3)])
    whole = (tmp_path / "1.jpg").read_bytes()
    content = {"no image": b"text", "cut short": whole[: len(whole) // 2], "empty": b""}[damage]
    (tmp_path / "1.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"^image: .*1\.jpg cannot be decoded") as refusal:
        prepare(data, tmp_path)
    assert "\n" not in str(refusal.value)
    assert len(prepare(data, tmp_path, 1)) == 1  # only what is asked is looked at


def test_samples_that_cannot_be_asked_are_named(tmp_path):
    class Processor:
        def apply_chat_template(self, messages, **options):
            return "prompt"

    data = write(tmp_path, record("a", None, "q", "a"), record("b", "1.png", "<image><image>", "c"))
    with pytest.raises(ValueError, match="^data: sample 'b': the conversation has 2 <image>"):
        module.check_samples(FAMILIES["nvila_lite"], Processor(), prepare(data, tmp_path))


def test_unknown_task():
    with pytest.raises(ValueError, match="task='vqa' is unknown: allowed are exact_match"):
        get_task("vqa")
