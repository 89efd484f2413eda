import io
import json
import re

import numpy as np

from preparation.engine import Preparation
from preparation.progress import ProgressLine
from preparation.statistics import Histogram
from tests.preparation.toy_source import (
    TOY,
    caption,
    encoded,
    picture,
    request,
    write_source,
)


def prepare(source, out, **changes):
    Preparation(TOY, request(source, out, **changes), io.StringIO()).run()
    return json.loads((out / "report.json").read_text()), (out / "report.html").read_text()


def test_figures_are_those_of_what_was_kept(tmp_path):
    files = [encoded(picture(n, (20 + n, 40)), "PNG") for n in range(5)]
    source = write_source(
        tmp_path / "source",
        [
            [caption("12345", files[0]), caption("1234567", files[1], files[2]), caption("")],
            [caption("12345", files[0]), caption("x" * 100), {"broken": "damaged"}],
        ],
    )
    report, page = prepare(source, tmp_path / "out")
    assert (report["samples_read"], report["samples_kept"], report["images_kept"]) == (6, 3, 3)
    assert report["rejected"] == {"duplicate": 1, "empty_text": 1, "invalid_record": 1}
    assert report["pieces"] == [
        {
            "file": "000.json",
            "first": 0,
            "stop": -1,
            "read": 3,
            "kept": 2,
            "rejected": {"empty_text": 1},
            "images_left_out": {},
        },
        {
            "file": "001.json",
            "first": 0,
            "stop": -1,
            "read": 3,
            "kept": 1,
            "rejected": {"duplicate": 1, "invalid_record": 1},
            "images_left_out": {},
        },
    ]
    assert report["rejected_examples"]["invalid_record"] == [
        {"key": "001.json#2", "message": "damaged"}
    ]
    width = report["histograms"]["image_width"]
    assert (width["count"], width["sum"]) == (3, 20 + 21 + 22)
    assert (width["smallest"], width["largest"]) == (20, 22)
    assert report["histograms"]["images_per_sample"]["bars"] == {"0": 1, "1": 1, "2": 1}
    # The newline after each placeholder counts.
    characters = report["histograms"]["text_characters"]
    assert characters["sum"] == 6 + 9 + 100
    shards = [path for path in (tmp_path / "out").glob("*.tar")]
    assert report["bytes"] == sum(path.stat().st_size for path in shards)
    assert "text_tokens" not in report["histograms"]
    assert page.count("<svg") == 5


def test_texts_of_the_source_are_no_markup(tmp_path):
    evil = "<script>alert('x')</script>&amp;"
    source = write_source(
        tmp_path / "source",
        [[caption(evil, licence=evil), {"broken": evil}, caption("good", encoded(picture(1)))]],
    )
    _, page = prepare(source, tmp_path / "out")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;amp;") == 3
    # One file, and nothing fetched.
    assert "href" not in page
    assert page.count("src=") == page.count("src='data:image/jpeg;base64,") == 1


def test_at_most_24_samples_are_shown_spread_over_all(tmp_path):
    records = [
        [caption(f"text {file * 30 + n}!", encoded(picture(n))) for n in range(30)]
        for file in range(4)
    ]
    source = write_source(tmp_path / "source", records)
    _, page = prepare(source, tmp_path / "out")
    shown = [int(number) for number in re.findall(r"text ([0-9]+)!", page)]
    assert len(set(shown)) == len(shown) == 24
    assert page.count("<img alt='' src='data:image/jpeg;base64,") == 24
    assert {number // 30 for number in shown} == {0, 1, 2, 3}
    assert len(page) < 200_000


def test_a_duplicate_is_not_shown(tmp_path):
    source = write_source(tmp_path / "source", [[caption("twice")], [caption("twice")]])
    _, page = prepare(source, tmp_path / "out")
    assert page.count("<p>twice</p>") == 1


def test_tokens_are_counted_with_a_tokenizer(tmp_path):
    from launch.quickstart.parents import train_tokenizer

    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = ["a short text", "another text, which is longer than the first"]
    source = write_source(tmp_path / "source", [[caption(text) for text in texts]])
    report, page = prepare(source, tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    expected = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    tokens = report["histograms"]["text_tokens"]
    assert (tokens["sum"], tokens["smallest"]) == (sum(expected), min(expected))
    assert "Text, tokens" in page


def test_bars_begin_at_their_edges():
    histogram = Histogram("", [0, 10, 20])
    histogram.add(np.array([0, 9, 10, 19, 20, 1000]))
    histogram.add(np.array([], np.int64))
    assert histogram.as_json()["bars"] == {"0": 2, "10": 2, "20": 2}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_tells_speed_and_time_left():
    seconds = [0.0]
    for stream, step in ((Terminal(), 1.0), (io.StringIO(), 40.0)):
        seconds[0] = 0.0
        line = ProgressLine(stream, 8_000_000, clock=lambda: seconds[0])
        line(1, 100, 0)
        assert stream.getvalue() == ""
        seconds[0] = step
        line(200, 30_000_000, 2_000_000)
        line.end()
        speed = 30 / step
        shown = f"200 samples, {200 / step:,.0f}/s, {speed:,.1f} MB/s, 0:"
        left = 3 * step
        assert (
            stream.getvalue().strip("\r\n")
            == f"{shown}{int(left // 60):02d}:{left % 60:02.0f} left"
        )
