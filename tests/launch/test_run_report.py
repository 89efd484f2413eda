"""The page about a run: what is drawn, and where its restarts are."""

import json
import re

import pytest

from launch.__main__ import main
from launch.html_page import curve
from launch.run_report import report_page
from launch.run_state import RunState
from tests.launch.run_folder import BEGUN, write_run


@pytest.fixture
def folder(tmp_path):
    folder = write_run(tmp_path / "sft", steps=20, finished=True)
    bad = {"key": "a", "source": "<pairs>", "reason": "no image", "message": "gone"}
    (folder / "log" / "bad_samples.jsonl").write_text((json.dumps(bad) + "\n") * 3)
    return folder


def points_of(page):
    lines = re.findall(r"polyline points='([^']*)'", page)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_curves_and_restarts(folder):
    page = report_page(RunState(folder), BEGUN + 1000)
    loss, norm, rate, seconds, speed, tokens = points_of(page)
    assert [len(line) for line in (loss, norm, rate, seconds, tokens)] == [20] * 5
    assert len(speed) == 18  # not the first step, nor the one after it
    assert all(y == speed[0][1] for _, y in speed)
    # The run went on with step 5: the mark is where that step is.
    marks = re.findall(r"<line x1='([\d.]+)'[^>]*><title>([^<]*)</title>", page)
    assert len(marks) == 6
    assert float(marks[0][0]) == loss[5][0]
    assert "job 7, attempt 0: a rank was killed; bad nodes: n2" in marks[0][1]
    assert "<td>&lt;pairs&gt;</td><td>no image</td><td>3</td>" in page
    assert "<td>8</td><td>the loss is nan</td><td>skipped</td><td>a&lt;1, b</td>" in page
    assert "<td>6</td><td>the loss is inf</td><td>gone back</td><td>c</td>" in page
    assert "<td>skipped steps</td><td class='number'>1</td>" in page
    assert "<td>tokens per second</td><td class='number'>2950</td>" in page
    assert "<td>code</td><td class='number'>0123abc</td>" in page
    assert "finished" in page
    assert not re.search(r"https?://", page)


def test_a_curve_has_its_values_at_their_places():
    drawn = curve("x", [(10, 4.0), (11, float("nan")), (20, 2.0)], {15: "<m>", 99: "out"})
    (((x0, y0), (x1, y1)),) = points_of(drawn)
    assert (x0, y0) == (34.0, 34.0)
    assert x1 == 360 - 34
    assert y1 == pytest.approx((34 + 180 - 34) / 2)
    assert re.findall(r"<line x1='([\d.]+)'", drawn) == [str((x0 + x1) / 2)]
    assert "&lt;m&gt;" in drawn
    assert "out" not in drawn


def test_the_command(folder, tmp_path, capsys):
    assert main(["report", str(folder)]) == 0
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    write_run(tmp_path / "align")
    assert main(["report", str(tmp_path)]) == 2
    assert "has the runs align, sft; name one of them" in capsys.readouterr().err
    assert main(["report", str(folder), "--out", str(tmp_path / "no" / "report.html")]) == 2
    assert "out: " in capsys.readouterr().err
