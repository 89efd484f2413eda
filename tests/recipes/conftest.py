import contextlib
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.free_ports import free_port
from tests.nano_start import write_nano_start

SCRIPT = Path(__file__).parent / "train_nano.py"


@pytest.fixture(scope="session")
def nano_start(nemo, tmp_path_factory):
    """Data and an assembled checkpoint to train from: {"train_paths", "image_folder", ...}."""
    return write_nano_start(tmp_path_factory.mktemp("nano_start"))


@pytest.fixture(scope="session")
def nano_mllama_start(nano_start, tmp_path_factory):
    """An imported MLlama; the same data, text without images, and pairs of images."""
    from converters.import_hf import import_checkpoint
    from launch.quickstart.mllama_parent import train_mllama_tokenizer, write_mllama

    folder = tmp_path_factory.mktemp("nano_mllama_start")
    write_mllama(folder / "hf", train_mllama_tokenizer())
    import_checkpoint("mllama", folder / "hf", folder / "imported")
    names = [f"train_strip2_{number:04d}.png" for number in range(30)]
    _write_records(
        folder / "text.jsonl",
        [(f"{number} の次の数は?", str(number + 1), []) for number in range(9)],
    )
    _write_records(
        folder / "pairs.jsonl",
        [
            ("<image>\nと<image>\nは同じですか?", "いいえ", [one, two])
            for one, two in zip(names[::2], names[1::2], strict=True)
        ],
    )
    return nano_start | {
        "family": "mllama",
        "init_from": str(folder / "imported"),
        "train_paths": [
            *nano_start["train_paths"],
            str(folder / "text.jsonl"),
            str(folder / "pairs.jsonl"),
        ],
        "weights": [0.3, 0.2, 0.3, 0.2],
    }


@pytest.fixture(scope="session")
def nano_llava_starts(nano_start, nemo, tmp_path_factory):
    """Options of a training by family: LLaVA and LLaVA-JP, put together; the same data and text."""
    from converters.assemble import assemble
    from converters.llava_assembly import LlavaAssembly
    from launch.quickstart.parents import (
        train_plain_tokenizer,
        write_clip,
        write_gpt2,
        write_llama,
        write_siglip,
    )

    folder = tmp_path_factory.mktemp("nano_llava_starts")
    _write_records(
        folder / "text.jsonl",
        [(f"{number} の次の数は?", str(number + 1), []) for number in range(9)],
    )
    data = {
        "train_paths": [*nano_start["train_paths"], str(folder / "text.jsonl")],
        "weights": [0.4, 0.4, 0.2],
        "image_folder": nano_start["image_folder"],
    }
    write_clip(folder / "clip")
    write_siglip(folder / "siglip", image_size=84)
    write_llama(folder / "llama", train_plain_tokenizer("v1"))
    write_gpt2(folder / "gpt2", train_plain_tokenizer("llava_jp"))
    parents = {
        "llava": ("llama", "clip", LlavaAssembly(conversation_template="v1")),
        "llava_jp": ("gpt2", "siglip", LlavaAssembly(conversation_template="llava_jp")),
    }
    for family, (llm, vision, rules) in parents.items():
        assemble(folder / llm, folder / vision, folder / family, rules)
    return {
        family: data | {"family": family, "init_from": str(folder / family)} for family in parents
    }


def _write_records(path, rows):
    with path.open("w", encoding="utf-8") as file:
        for question, answer, images in rows:
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"image": images, "conversations": turns}) + "\n")


def _end_session(leader):
    """Kills every process that a training has left, whose ranks share a session."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and os.getsid(int(folder.name)) == leader:
                os.kill(int(folder.name), signal.SIGKILL)


def _without_repeated_marks(text):
    """PyTorch marks an error's lines with the rank once for each run of the processes."""
    return re.sub(r"(\[rank\d+\]: )\1+", r"\1", text)


def _errors(text):
    """The lines that name an error: when one rank fails, the others lose it."""
    return "\n".join(re.findall(r"^.*(?:Error|Exception|Signal|Timeout)\b.*: .*$", text, re.M)[:20])


@pytest.fixture(scope="session")
def training_server(project_root, tmp_path_factory):
    """A process that starts trainings: see forked_ranks."""
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            cwd=project_root.path,
            env=project_root.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # select() must see what no buffer has taken
        )
    process.log = log
    yield process
    process.stdin.close()
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def run_training(training_server, tmp_path_factory):
    """Runs train_nano.py and returns its exit status; what it printed is in the file `.log`."""

    numbers = itertools.count()

    def answer(number, seconds):
        """The answer to a request; what one that took too long has answered since is skipped."""
        while True:
            ready, _, _ = select.select([training_server.stdout], [], [], seconds)
            line = training_server.stdout.readline() if ready else b""
            if not line:
                print(training_server.log.read_text(errors="replace")[-20_000:])
                raise AssertionError(f"no answer from train_nano.py in {seconds} s")
            about, value = line.split()
            if int(about) == number:
                return int(value)

    def run(runs, num_processes=1, check=True):
        number = next(numbers)
        log = run.log = tmp_path_factory.mktemp("log") / "output.txt"
        request = {"number": number, "runs": runs, "num_processes": num_processes}
        request |= {"log": str(log), "port": free_port()}
        training_server.stdin.write(f"{json.dumps(request)}\n".encode())
        leader = answer(number, 300)
        try:
            status = answer(number, 1700)
        finally:
            # Also what a killed run leaves: the process that collects a checkpoint's results.
            _end_session(leader)
        if check and status:
            text = _without_repeated_marks(log.read_text(errors="replace"))
            print(text[-40_000:])
            raise AssertionError(f"train_nano.py ended with {status}\n{_errors(text)}")
        return status

    return run
