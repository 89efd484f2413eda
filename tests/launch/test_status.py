"""How far runs are, from their files and from what Slurm says."""

import os

import pytest

from launch.__main__ import main
from launch.run_state import RunState, find_runs
from launch.status import duration
from tests.launch.run_folder import BEGUN, write_run


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Lets `squeue` give an answer for job 7."""

    def answer(state):
        program = tmp_path / "bin" / "squeue"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\n[ "$3" = 7 ] && echo {state}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return answer


def test_figures_of_a_run(tmp_path):
    run = RunState(write_run(tmp_path / "sft"))
    assert (run.steps_done, run.max_steps, run.job) == (10, 20, "7")
    assert run.seconds_per_step == 2.0
    assert run.samples_per_second == 16.0
    assert run.tokens_per_second == 2450.0  # 4000, 4200 .. 5800 in two seconds each
    assert run.seconds_left == 20.0
    assert [line["reason"] for line in run.restarts] == ["a rank was killed"]
    assert run.skipped_steps == [8]


def test_what_slurm_says_of_its_job(tmp_path, squeue):
    run = RunState(write_run(tmp_path / "sft"))
    for state, words in (
        ("PENDING", "waiting (job 7)"),
        ("RUNNING", "running (job 7)"),
        ("FAILED", "stopped: a rank was killed"),
    ):
        squeue(state)
        assert run.describe(BEGUN + 1e6) == words


def test_without_slurm_the_last_step_decides(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run = RunState(write_run(tmp_path / "sft", attempts=[]))
    assert run.describe(BEGUN + 60) == "running"
    assert run.describe(BEGUN + 600) == "stopped"
    assert RunState(write_run(tmp_path / "new", steps=0, attempts=[])).describe(0) == "not begun"
    whole = RunState(write_run(tmp_path / "whole", steps=20, finished=True))
    assert whole.describe(BEGUN + 1e6) == "finished"
    assert len(whole.restarts) == 1


def test_the_command_prints_runs_and_their_restarts(tmp_path, squeue, capsys):
    squeue("RUNNING")
    write_run(tmp_path / "runs" / "align", steps=20, attempts=[])
    write_run(tmp_path / "runs" / "sft")
    (tmp_path / "runs" / "other").mkdir()
    assert main(["status", str(tmp_path / "runs")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] + head.split()[-1:] == ["run", "state", "step", "loss", "skipped"]
    assert [line.split() for line in lines[:2]] == [
        ["sft", "running", "(job", "7)", "10/20", "0.4000", "2", "16", "2450", "0:20", "1", "1"],
        ["align", "finished", "20/20", "0.2000", "2", "16", "2950", "-", "0", "1"],
    ]
    assert lines[2:-1] == [
        "sft: 2026-11-18 11:07:02 UTC, job 7, attempt 0: a rank was killed; bad nodes: n2"
    ]


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder, message in (
        (tmp_path, f"dir: {tmp_path} has no run"),
        (tmp_path / "no", "is no folder; name that of a run"),
    ):
        with pytest.raises(ValueError, match=message):
            find_runs(folder)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (4.6, "0:05"),
        (3599, "59:59"),
        (3661, "1:01:01"),
        (2 * 86_400 + 300, "2d 00:05"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
