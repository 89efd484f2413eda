"""The Energon data module in real trainings of two processes, one of them stopped and resumed."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

data = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("energon_data.py"))))
ROOT = Path(__file__).parents[2]
# Two trainings and one that is resumed, each of two processes that import NeMo.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS, SAVED, STOP = 6, 3, 4
GLOBAL_BATCH, RANKS = 4, 2


def train(settings, environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--master-port", port]
    script = str(Path(__file__).with_name("energon_training.py"))
    result = subprocess.run(
        [sys.executable, *command, script, json.dumps(settings)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]


@pytest.fixture(scope="module")
def keys(nemo, tmp_path_factory):
    """What each rank read in each run: {(run, rank): [[kind, keys], ...]}."""
    from converters.assemble import assemble
    from launch import backend
    from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

    folder = tmp_path_factory.mktemp("energon_training")
    write_siglip(folder / "siglip")
    write_qwen2(folder / "qwen2", train_tokenizer())
    assemble(folder / "qwen2", folder / "siglip", folder / "assembled")
    splits = {
        "train": [data.good_sample(number) for number in range(31)],
        "val": [data.good_sample(number, "v") for number in range(5)],
    }
    settings = {
        "folder": str(folder / "runs"),
        "from": str(folder / "assembled"),
        "steps": STEPS,
        "save_every": SAVED,
        "data": {
            "path": data.write_set(folder / "set", splits),
            "seq_length": 256,
            "global_batch_size": GLOBAL_BATCH,
            "num_workers": 2,
            "num_validation_workers": 1,
            "shuffle_buffer_size": 4,
        },
    }
    whole, first, second = (
        {"name": "whole", "keys": str(folder / "whole")},
        {"name": "parts", "keys": str(folder / "first"), "stop_after": STOP},
        {"name": "parts", "keys": str(folder / "second")},
    )
    environment = {**os.environ, **backend.child_environment(), "OMP_NUM_THREADS": "1"}
    paths = [environment.get("PYTHONPATH", ""), str(ROOT)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    # NeMo's telemetry refuses another training in a process where one broke off.
    for runs in ([whole, first], [second]):
        train({**settings, "runs": runs}, environment)
    return {
        (name, rank): [
            json.loads(line) for line in (folder / f"{name}{rank}").read_text().splitlines()
        ]
        for name in ("whole", "first", "second")
        for rank in range(RANKS)
    }


def of_kind(kind, batches):
    return [keys for found, keys in batches if found == kind]


def test_a_resumed_training_reads_on_with_the_next_sample(keys):
    micro_batches = GLOBAL_BATCH // RANKS
    for rank in range(RANKS):
        whole = of_kind("train", keys["whole", rank])
        assert len(whole) == STEPS * micro_batches
        first, second = (of_kind("train", keys[name, rank]) for name in ("first", "second"))
        assert len(first) == STOP * micro_batches
        # The fourth step was taken, but not saved, so it is taken again.
        assert first[: SAVED * micro_batches] + second == whole
    read = [{key for batch in of_kind("train", keys["whole", r]) for key in batch} for r in (0, 1)]
    assert not read[0] & read[1]


def test_every_validation_of_a_training_reads_every_sample_once(keys):
    # Of 6 steps, every second one is followed by a validation, of 5 samples in steps of 4.
    passes = [of_kind("validation", keys["whole", rank]) for rank in range(RANKS)]
    assert len(passes[0]) == len(passes[1]) == 3 * 4
    for first in (0, 4, 8):
        read = [key for rank in range(RANKS) for keys in passes[rank][first:][:4] for key in keys]
        names = sorted(key.rpartition("/")[2] for key in read if key != "filler")
        assert names == [f"v{number:04d}" for number in range(5)]
