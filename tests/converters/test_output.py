import subprocess
import sys

import pytest

from converters.output import new_directory


def test_the_target_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with new_directory(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "a").read_text() == "1"


def test_a_failure_leaves_nothing(tmp_path):
    def interrupted():
        with new_directory(tmp_path / "out") as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    script = (
        "import os, signal, sys; from converters.output import new_directory\n"
        "with new_directory(sys.argv[1]) as folder:\n"
        "    (folder / 'a').write_text('1'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    with new_directory(tmp_path / "out") as folder:
        (folder / "b").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_an_empty_folder_is_taken_and_anything_else_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty") as folder:
        (folder / "a").touch()
    (tmp_path / "file").write_text("keep")
    for target in ("empty", "file"):
        with (
            pytest.raises(ValueError, match="exists and is not empty"),
            new_directory(tmp_path / target),
        ):
            raise AssertionError("must not get here")
    assert (tmp_path / "file").read_text() == "keep"
