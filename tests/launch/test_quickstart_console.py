import os
import subprocess
import sys
import textwrap
import time

import pytest

from launch.quickstart.memory import PeakMemory


def run(script, *arguments, **options):
    """Run a script in a process of its own, whose descriptors are real; return both outputs."""
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, finished.stderr


def test_output_goes_to_the_file_and_comes_back(tmp_path):
    log = tmp_path / "logs" / "phase.log"
    script = """
        import os, subprocess, sys
        from pathlib import Path
        from launch.quickstart.console import Console, output_to

        console = Console()
        open_before = len(os.listdir("/proc/self/fd"))
        print("before")
        for number in range(2):
            with output_to(Path(sys.argv[1])):
                print("printed", number)
                print("warned", number, file=sys.stderr)
                os.write(1, b"written\\n")
                subprocess.run("echo child; echo child error >&2", shell=True, check=True)
                console.line(f"line {number}")
        try:
            with output_to(Path(sys.argv[1])):
                print("last words")
                raise KeyError
        except KeyError:
            print("after")
            print("after error", file=sys.stderr)
            subprocess.run(["echo", "child after"], check=True)
        assert len(os.listdir("/proc/self/fd")) == open_before
    """
    # Unbuffered, so that the order within the file is that of the writes.
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    out, error = run(script, log, env=environment)
    assert out.splitlines() == ["before", "line 0", "line 1", "after", "child after"]
    assert error.splitlines() == ["after error"]
    expected = []
    for number in range(2):
        expected += [f"printed {number}", f"warned {number}", "written", "child", "child error"]
    assert log.read_text().splitlines() == [*expected, "last words"]


def test_buffered_output_lands_where_it_was_printed(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from launch.quickstart.console import output_to

        print("before")
        with output_to(Path(sys.argv[1])):
            print("inside")
        print("after")
    """
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    out, _ = run(script, tmp_path / "log", env=environment)
    assert out.splitlines() == ["before", "after"]
    assert (tmp_path / "log").read_text().splitlines() == ["inside"]


STATES = """
    from launch.quickstart.console import Console

    console = Console()
    console.line("[data] begin")
    console.status("step 1/2")
    console.status("step 2/2")
    console.line("[data] 3 s")
"""


def test_without_a_terminal_states_are_lines():
    out, _ = run(STATES)
    assert out == "[data] begin\nstep 1/2\nstep 2/2\n[data] 3 s\n"


def test_on_a_terminal_a_state_overwrites_the_one_before():
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", textwrap.dedent(STATES)], stdout=theirs, check=True)
    os.close(theirs)
    out = os.read(ours, 4096).decode().replace("\r\n", "\n")
    os.close(ours)
    clear = "\r\x1b[2K"
    assert out == f"[data] begin\nstep 1/2{clear}step 2/2{clear}[data] 3 s\n"


def test_watching_shows_what_changes_and_stops():
    script = """
        import threading, time
        from launch.quickstart import console as module

        module._PLAIN_REFRESH_SECONDS = 0.01
        texts = iter([None, "a", "a", "b"])
        console, used_up = module.Console(), threading.Event()

        def describe():
            text = next(texts, "end")
            if text == "end":
                used_up.set()
                return "b"
            return text

        with console.watching(describe):
            assert used_up.wait(60)
        assert threading.active_count() == 1
    """
    out, _ = run(script)
    assert out == "a\nb\n"


def test_peak_memory_sees_a_child():
    with PeakMemory() as alone:
        time.sleep(0.1)
    assert alone.peak_bytes > 0  # also of a block that is shorter than the interval
    # Written pages count, reserved ones would not.
    script = "import time; data = bytearray(b'x') * (200 * 2**20); time.sleep(4)"
    with PeakMemory() as memory:
        subprocess.run([sys.executable, "-c", script], check=True)
    assert 190 * 2**20 < memory.peak_bytes - alone.peak_bytes < 400 * 2**20
