import io
import json
from argparse import Namespace

import pytest
import torch
from PIL import Image

import evaluation.generation
import evaluation.tasks
from evaluation.exact_match import ExactMatch, Row
from launch.evaluate import ProgressLine, evaluate


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_line():
    stream = Terminal()
    show = ProgressLine(stream, clock=lambda: 0.0)
    for done in (8, 16, 20):
        show(done, 20)
    assert stream.getvalue() == "\ranswered 8/20\ranswered 16/20\ranswered 20/20\n"


def test_a_log_gets_a_line_every_ten_seconds():
    seconds = [100.0]
    stream = io.StringIO()
    show = ProgressLine(stream, clock=lambda: seconds[-1])
    for now, done in [(105.0, 1), (109.9, 2), (110.0, 3), (119.0, 4), (121.0, 5), (122.0, 6)]:
        seconds.append(now)
        show(done, 6)
    assert stream.getvalue() == "answered 3/6\nanswered 5/6\n"


@pytest.mark.parametrize(
    ("gpu", "device", "dtype"), [(True, "cuda", torch.bfloat16), (False, "cpu", torch.float32)]
)
def test_options_reach_the_model_and_the_task(monkeypatch, gpu, device, dtype):
    calls = []

    def open_processor(hf, trust_remote_code):
        calls.append(("open", hf, trust_remote_code))
        return "family", "processor"

    def load(hf, **options):
        calls.append(("load", hf, options))
        return "model", "its processor"

    def prepare(*arguments, **options):
        calls.append(("prepare", arguments, options))
        return "samples"

    def check(*arguments):
        calls.append(("check", arguments))

    def score(*arguments, progress):
        calls.append(("score", arguments))
        progress(1, 1)
        row = Row("a", "q", "3", "4", False, ("a.png",))
        return ExactMatch((row,), 0.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(evaluation.generation, "open_processor", open_processor)
    monkeypatch.setattr(evaluation.generation, "load", load)
    task = evaluation.tasks.Task(prepare=prepare, check=check, score=score)
    monkeypatch.setitem(evaluation.tasks.TASKS, "exact_match", task)
    options = Namespace(
        hf="hf",
        task="exact_match",
        data="data.jsonl",
        image_folder="images",
        limit=3,
        shuffle_images=True,
        trust_remote_code=gpu,
    )
    result = evaluate(options)
    # Everything that can be refused comes before the weights.
    assert calls == [
        ("open", "hf", gpu),
        ("prepare", ("data.jsonl", "images"), {"limit": 3, "shuffle_images": True}),
        ("check", ("family", "processor", "samples")),
        ("load", "hf", {"device": device, "dtype": dtype, "trust_remote_code": gpu}),
        ("score", ("model", "its processor", "samples")),
    ]
    assert result == {
        "score": 0.0,
        "questions": 1,
        "rows": [
            {
                "id": "a",
                "question": "q",
                "answer": "3",
                "truth": "4",
                "correct": False,
                "images": ("a.png",),
            }
        ],
    }


@pytest.mark.parametrize(
    ("image", "record", "message"),
    [
        (b"", {}, "image: .*a.png cannot be decoded"),
        (None, {"image": "b.png"}, "data: .* names the image .*b.png"),
        (None, {"conversations": []}, "data: .* has no conversation"),
        (None, {"image": None}, "data: sample 'a': .* 1 <image> placeholders for 0 images"),
        (None, {"system": "s"}, "data: sample 'a': the model's chat template refuses"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_is_loaded(
    tmp_path, monkeypatch, image, record, message
):
    from launch.quickstart.mllama_parent import write_mllama

    hf = tmp_path / "hf"
    write_mllama(hf)
    (hf / "model.safetensors").unlink()  # loading the model would fail otherwise than expected
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    if image is not None:
        (tmp_path / "a.png").write_bytes(image)
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "3"}]
    record = dict(record)
    if record.pop("system", None):
        turns.insert(0, {"from": "system", "value": "s"})
    content = {"id": "a", "image": "a.png", "conversations": turns} | record
    (tmp_path / "data.jsonl").write_text(json.dumps(content))
    options = Namespace(
        hf=str(hf),
        task="exact_match",
        data=str(tmp_path / "data.jsonl"),
        image_folder=str(tmp_path),
        limit=None,
        shuffle_images=False,
        trust_remote_code=False,
    )
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        evaluate(options)
    assert "\n" not in str(refusal.value)
