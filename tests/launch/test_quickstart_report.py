import base64
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from launch.quickstart.report import Shown, write_report

FIGURES = {"strip3_exact_match": 0.98765432, "strip3_questions": 200}
SECONDS = {"data": 3.25, "align": 61.0}
LOSSES = {"align": [4.0, 2.0, 1.0], "pretrain": [3.0], "sft": [2.5, 0.5]}


class Page(HTMLParser):
    """Collects elements with their attributes, and text by the element around it."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open.pop() != tag:
            pass  # elements like meta and img have no end

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else None, data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def shown(tmp_path):
    Image.new("L", (56, 56), 7).save(tmp_path / "single.jpg")
    Image.new("L", (168, 56), 9).save(tmp_path / "strip.png")
    return [
        Shown(image=tmp_path / "single.jpg", question="何ですか?", answer="3", truth="3"),
        Shown(
            image=tmp_path / "strip.png",
            question="<script>alert(1)</script> & 'q'",
            answer="<b>1 2</b>",
            truth="1 <i>2</i> 3",
        ),
    ]


def write(folder, shown, losses=LOSSES):
    return write_report(folder, "Title <1>", FIGURES, SECONDS, losses, shown)


def test_json_holds_the_figures_and_the_seconds(tmp_path, shown):
    write(tmp_path, shown)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content == FIGURES | {"seconds_by_phase": SECONDS}


def test_the_page_shows_the_figures_and_the_seconds(tmp_path, shown):
    path = write(tmp_path, shown)
    assert path == tmp_path / "report.html"
    cells = [text for tag, text in Page(path).texts if tag == "td"]
    assert cells == [
        *("strip3_exact_match", "0.9877", "strip3_questions", "200"),
        *("data", "3.2 s", "align", "61.0 s"),
    ]


def test_one_curve_per_stage_with_a_point_per_step(tmp_path, shown):
    lines = Page(write(tmp_path, shown)).all("polyline")
    points = [
        [tuple(map(float, point.split(","))) for point in line["points"].split()] for line in lines
    ]
    assert [len(line) for line in points] == [3, 1, 2]
    # Steps go right at equal distances, a smaller loss is lower, zero is the base line.
    (x0, y0), (x1, y1), (x2, y2) = points[0]
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert x1 > x0
    base = y0 + (y1 - y0) * 2
    assert y1 > y0
    assert y2 == pytest.approx(base - (base - y0) / 4, abs=0.1)


def test_text_is_escaped(tmp_path, shown):
    page = Page(write(tmp_path, shown))
    assert not page.all("script") + page.all("b") + page.all("i")
    whole = "".join(text for _, text in page.texts)
    for text in (shown[1].question, shown[1].answer, shown[1].truth, "Title <1>"):
        assert text in whole


def test_images_are_in_the_page(tmp_path, shown):
    images = Page(write(tmp_path, shown)).all("img")
    for image, item, kind in zip(images, shown, ("jpeg", "png"), strict=True):
        head, data = image["src"].split(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(data) == item.image.read_bytes()


def test_nothing_is_fetched_from_elsewhere(tmp_path, shown):
    page = Page(write(tmp_path, shown))
    assert not page.all("link")
    assert not re.search(r"https?://", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_right_and_wrong_answers_are_told_apart(tmp_path, shown):
    spans = Page(write(tmp_path, shown)).all("span")
    assert [span["class"] for span in spans] == ["right", "wrong"]


@pytest.mark.parametrize("values", [[], [0.0], [0.0, 0.0]])
def test_a_stage_without_steps_or_loss(tmp_path, shown, values):
    lines = Page(write(tmp_path, shown, {"align": values})).all("polyline")
    assert [len(line["points"].split()) for line in lines] == [len(values)]


def test_nothing_to_show(tmp_path):
    page = Page(write_report(tmp_path, "Empty", {}, {}, {}, []))
    assert not page.all("polyline") + page.all("img")
