"""The verb prepare through `main`: exit status, the one sentence, and what it costs to ask."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import preparation.shards
from launch.__main__ import build_parser, main
from launch.prepare import _request
from preparation.formats import FORMATS
from preparation.options import FilterOptions, PrepareOptions
from preparation.tasks import task_commands
from tests.preparation.toy_source import contents, write_llava_source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    return write_llava_source(tmp_path / "source", files=2, per_file=3)


def arguments(source, out, *more):
    return ["prepare", str(source), "--format", "llava", "--out", str(out), "--jobs", "1", *more]


def refused(capsys, given):
    capsys.readouterr()
    assert main(given) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def test_help_loads_nothing_heavy_and_explains_every_option():
    script = (
        "import sys, launch.__main__ as m\n"
        "try: m.main(['prepare', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'pyarrow', 'megatron'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr
    assert all(name in finished.stdout for name in FORMATS)
    (verbs,) = [action for action in build_parser()._actions if action.dest == "verb"]
    assert all(action.help for action in verbs.choices["prepare"]._actions)


def test_defaults_are_those_of_the_library(source, tmp_path):
    given = build_parser().parse_args(arguments(source, tmp_path / "out"))
    assert _request(given) == PrepareOptions(
        source=source, format="llava", out=tmp_path / "out", filters=FilterOptions()
    )


def test_a_source_becomes_shards_and_a_report(source, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    out = tmp_path / "out"
    assert main(arguments(source, out, "--json", str(figures))) == 0
    written = json.loads(figures.read_text())
    assert written["verb"] == "prepare"
    assert written["failed"] is False
    assert written["samples_read"] == 2 * 8
    assert written["rejected"] == {
        "duplicate": 1,
        "invalid_record": 2,
        "missing_image": 2,
        "unreadable_image": 2,
    }
    assert written["samples_kept"] == 9
    names = set(contents(out))
    shards = {"000000-000.tar", "000000-000.tar.idx"}
    meta = {
        f".nv-meta/{name}"
        for name in (".info.yaml", "split.yaml", "dataset.yaml", "crude.yaml", "sample_loader.py")
    }
    assert names == shards | meta | {"report.json", "report.html", "rejected.jsonl"}
    assert "samples_kept: 9" in capsys.readouterr().out
    assert main(arguments(source, out)) == 0
    assert "already_finished: True" in capsys.readouterr().out


def test_neither_nemo_nor_megatron_core_is_needed(source, tmp_path):
    script = (
        "import sys, launch.__main__ as m\n"
        f"assert m.main({arguments(source, tmp_path / 'out')!r}) == 0\n"
        "found = {'nemo', 'nemo_run', 'megatron.core'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=ROOT)


def test_wrong_requests_are_refused_with_one_sentence(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert "source: " in refused(capsys, arguments(tmp_path / "none", out))
    assert "split: 'a,b'" in refused(capsys, arguments(source, out, "--split", "a,b"))
    assert "language: 'xx'" in refused(capsys, arguments(source, out, "--language", "xx"))
    assert "task: '2/2'" in refused(capsys, arguments(source, out, "--task", "2/2"))
    assert "tasks: 0" in refused(capsys, arguments(source, out, "--tasks", "0"))
    assert "tokenizer: " in refused(capsys, arguments(source, out, "--tokenizer", str(tmp_path)))
    assert "exclude: " in refused(capsys, arguments(source, out, "--exclude", str(tmp_path / "x")))
    sentence = refused(capsys, arguments(source, out, "--near-duplicate-bits", "16"))
    assert "near_duplicate_bits: 16 is not allowed; give 0 to 15." in sentence
    assert not out.exists()
    assert "finish: 1 of 1 units are missing" in refused(capsys, arguments(source, out, "--finish"))
    for wrong in (["--format", "pickle"], ["--task", "0/2", "--finish"]):
        with pytest.raises(SystemExit) as end:
            main([*arguments(source, out), *wrong])
        assert end.value.code == 2


def test_a_full_disk_is_a_failure_with_one_sentence(source, tmp_path, capsys, monkeypatch):
    import errno

    def full(name: str, data: bytes) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    figures = tmp_path / "figures.json"
    with monkeypatch.context() as patch:
        patch.setattr(preparation.shards, "_member", full)
        assert main(arguments(source, tmp_path / "out", "--json", str(figures))) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: no space is left for ")
    assert error.endswith("start again to go on.")
    assert json.loads(figures.read_text())["failed"] is True
    assert main(arguments(source, tmp_path / "out")) == 0


def test_a_stop_by_hand_is_a_failure_that_can_be_taken_up(source, tmp_path, capsys, monkeypatch):
    def stop(name: str, data: bytes) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation.shards, "_member", stop)
        assert main(arguments(source, tmp_path / "out")) == 1
    assert capsys.readouterr().err.strip().endswith("error: stopped; start again to go on.")
    assert main(arguments(source, tmp_path / "out")) == 0


def test_tasks_are_the_same_request_in_parts():
    given = ["data", "--format", "llava", "--tasks=3", "--json", "f", "--out", "o", "--jobs", "4"]
    commands = task_commands(given, 3)
    common = ("python", "-m", "launch", "prepare", "data", "--format", "llava", "--out", "o")
    assert commands.tasks == tuple(
        (*common, "--jobs", "4", "--task", f"{number}/3") for number in range(3)
    )
    assert commands.finish == (*common, "--jobs", "4", "--finish")


@pytest.mark.slow
def test_tasks_run_through_nemo_run(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path / "nemo_run"))
    monkeypatch.chdir(ROOT)
    assert main(arguments(source, tmp_path / "clean")) == 0
    assert main(arguments(source, tmp_path / "out", "--tasks", "2")) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")
    failing = arguments(source, tmp_path / "failing", "--min-similarity", "0.3", "--tasks", "2")
    assert main(failing) == 1
    assert "error: a task failed" in capsys.readouterr().err
