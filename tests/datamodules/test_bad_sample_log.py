import json
import multiprocessing

import pytest

from datamodules.bad_samples import BadSampleLog, TooManyBadSamples, count_bad_samples
from sample_loaders.errors import BadSample, Reason


def bad(text="It is broken."):
    return BadSample(Reason.UNREADABLE_IMAGE, text)


def test_entries_are_lines_of_json(tmp_path):
    path = tmp_path / "new" / "bad.jsonl"
    log = BadSampleLog(path, max_in_a_row=5)
    log.skip("f#3", "f", bad("画像 x.png が壊れています。"))
    log.skip("g#0", "g", BadSample(Reason.TOO_LONG, "Long\nlines."))
    text = path.read_text(encoding="utf-8")
    assert "画像" in text  # for people, so not escaped
    assert [json.loads(line) for line in text.splitlines()] == [
        {
            "key": "f#3",
            "source": "f",
            "reason": "unreadable_image",
            "message": "画像 x.png が壊れています。",
        },
        {"key": "g#0", "source": "g", "reason": "too_long", "message": "Long\nlines."},
    ]


def test_counts_by_source_and_reason(tmp_path):
    path = tmp_path / "bad.jsonl"
    first, second = BadSampleLog(path, 9), BadSampleLog(path, 9)
    for log, source, error in ((first, "f", bad()), (second, "f", bad()), (first, "g", bad())):
        log.skip("k", source, error)
    expected = {("f", "unreadable_image"): 2, ("g", "unreadable_image"): 1}
    assert count_bad_samples(path) == expected
    assert first.counts == {("f", "unreadable_image"): 1, ("g", "unreadable_image"): 1}


def test_too_many_in_a_row_names_the_last_ones():
    log = BadSampleLog(None, max_in_a_row=3)
    for number in range(3):
        log.skip(f"f#{number}", "f", bad())
    with pytest.raises(TooManyBadSamples) as caught:
        log.skip("f#3", "f", bad("The image x.png is cut short."))
    message = str(caught.value)
    assert "4 samples in a row" in message
    assert "max_bad_samples_in_a_row=3" in message
    assert "f#3 (unreadable_image: The image x.png is cut short)" in message
    assert "f#1" in message
    assert "f#0" not in message


def test_a_good_sample_ends_the_row():
    log = BadSampleLog(None, max_in_a_row=1)
    for _ in range(5):
        log.skip("k", "f", bad())
        log.accept()
    log.skip("k", "f", bad())
    with pytest.raises(TooManyBadSamples):
        log.skip("k", "f", bad())


def test_negative_bound():
    with pytest.raises(ValueError, match="max_bad_samples_in_a_row is -1"):
        BadSampleLog(None, -1)


def _write(path, worker):
    log = BadSampleLog(path, max_in_a_row=1000)
    for number in range(200):
        log.skip(f"{worker}#{number}", str(worker), bad("あ" * 2000))


def test_lines_of_many_processes_do_not_mix(tmp_path):
    path = tmp_path / "bad.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {entry["key"] for entry in entries} == {f"{w}#{n}" for w in range(4) for n in range(200)}
    assert all(len(entry["message"]) == 1000 for entry in entries)
