"""Runs that are killed at any moment and started again end with the same bytes."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preparation.engine import Preparation
from preparation.options import FilterOptions
from tests.preparation.toy_source import (
    TOY,
    contents,
    request,
    write_llava_source,
    write_mixed_source,
)

ROOT = Path(__file__).resolve().parents[2]
# What changes names on the disk; between two of them only files are written that nobody reads yet.
STEPS = (
    (os, "rename"),
    (os, "replace"),
    (os, "unlink"),
    (os, "mkdir"),
    (os, "rmdir"),
    (shutil, "rmtree"),
)


def options_of(source, out):
    filters = FilterOptions(near_duplicate_bits=0)
    return request(source, out, samples_per_shard=4, split=(0.5, 0.5), filters=filters)


def run_and_die(source, out, step: int) -> bool:
    """Runs in a process that ends, without tidying, before a step; tells whether it came there."""
    process = os.fork()
    if process == 0:
        done = 0

        def dying(call):
            def counted(*arguments, **options):
                nonlocal done
                done += 1
                if done == step and os.getpid() == own:
                    os._exit(9)
                return call(*arguments, **options)

            return counted

        own = os.getpid()
        status = 1
        try:
            for module, name in STEPS:
                setattr(module, name, dying(getattr(module, name)))
            Preparation(TOY, options_of(source, out), io.StringIO()).run()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    return os.waitstatus_to_exitcode(status) == 9


def test_a_run_killed_between_any_two_steps_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("preparation.units._MOST_PIECES", 1)
    source = write_mixed_source(tmp_path / "source", files=3, per_file=8)
    Preparation(TOY, options_of(source, tmp_path / "clean"), io.StringIO()).run()
    expected = contents(tmp_path / "clean")
    assert len([name for name in expected if name.endswith(".tar")]) > 3
    step = 0
    while True:
        step += 1
        out = tmp_path / f"out-{step}"
        died = run_and_die(source, out, step)
        if not died:
            break
        # Once more it is killed on its way, then it may end.
        run_and_die(source, out, 5)
        Preparation(TOY, options_of(source, out), io.StringIO()).run()
        assert contents(out) == expected, f"killed before step {step}"
        assert not (out / ".prepare").exists()
        shutil.rmtree(out)
    assert step > 25


@pytest.mark.slow
def test_processes_killed_at_once_at_any_time_leave_nothing_that_hinders(tmp_path):
    source = write_llava_source(tmp_path / "source", files=12, per_file=12)
    command = [sys.executable, "-m", "launch", "prepare", str(source), "--format", "llava"]
    more = ["--jobs", "2", "--samples-per-shard", "5", "--near-duplicate-bits", "0", "--out"]
    clean, out = tmp_path / "clean", tmp_path / "out"
    started = time.monotonic()
    subprocess.run([*command, *more, str(clean)], cwd=ROOT, check=True, capture_output=True)
    seconds = time.monotonic() - started
    chance = random.Random(3)
    for _ in range(3):
        with subprocess.Popen(
            [*command, *more, str(out)],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(chance.uniform(0.2, 0.9) * seconds)
            os.killpg(process.pid, signal.SIGKILL)
    subprocess.run([*command, *more, str(out)], cwd=ROOT, check=True, capture_output=True)
    assert contents(out) == contents(clean)


def test_the_processes_of_a_killed_run_end_too(tmp_path):
    source = write_llava_source(tmp_path / "source", files=4, per_file=100)
    command = [sys.executable, "-m", "launch", "prepare", str(source), "--format", "llava"]
    with subprocess.Popen(
        [*command, "--jobs", "2", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for(lambda: list((tmp_path / "out").glob(".prepare/units/*")))  # somebody works
        assert len(members_of(process.pid)) >= 3  # it, its helper and a worker at least
        process.kill()
        process.wait()
        try:
            wait_for(lambda: not members_of(process.pid))
        finally:
            for member in members_of(process.pid):
                os.kill(member, signal.SIGKILL)


def members_of(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, own = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(own) == session and state != "Z":
                found.append(int(entry.name))
    return found


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
