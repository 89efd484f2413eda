import io
from argparse import Namespace

import pytest
import torch

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
    calls = {}

    def load(hf, **options):
        calls["load"] = (hf, options)
        return "model", "processor"

    def task(*arguments, progress, **options):
        calls["task"] = (arguments, options)
        progress(1, 1)
        row = Row("a", "q", "3", "4", False, ("a.png",))
        return ExactMatch((row,), 0.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(evaluation.generation, "load", load)
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
    expected = {"device": device, "dtype": dtype, "trust_remote_code": gpu}
    assert calls["load"] == ("hf", expected)
    assert calls["task"] == (
        ("model", "processor", "data.jsonl", "images"),
        {"limit": 3, "shuffle_images": True},
    )
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
