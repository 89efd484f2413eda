"""Reads that hang, real ones: an image that is a pipe nobody writes to, and a shard that is one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datamodules.bad_samples import BadSampleLog, count_bad_samples
from datamodules.read_watch import ReadWatch

ROOT = Path(__file__).resolve().parents[2]
READ_FILES = """
import sys
from torch.utils.data import DataLoader
from datamodules.bad_samples import BadSampleLog
from datamodules.blend import Blend
from datamodules.dataset import TrainingSamples
from datamodules.read_watch import ReadWatch
from datamodules.sample_encoder import open_encoder
from datamodules.split import open_sources

if __name__ == "__main__":
    assets, file, folder, log, workers = sys.argv[1:]
    encoder = open_encoder(assets, 512)
    encoder.prepare()
    sources = open_sources([file], folder, "image_folder")
    log = BadSampleLog(log, 5)
    samples = TrainingSamples(
        sources, Blend([2], shuffle=False), encoder, log, ReadWatch(1.0, log)
    )
    loader = DataLoader(samples, batch_size=None, sampler=[0, 1], num_workers=int(workers))
    for sample in loader:
        print("read", sample.key, flush=True)
"""
READ_SHARDS = """
import sys
from megatron.energon import WorkerConfig
from datamodules.bad_samples import BadSampleLog
from datamodules.energon_loaders import training_batches
from datamodules.energon_shards import open_shards
from datamodules.energon_task import ConversationTask
from datamodules.packing import Room
from datamodules.read_watch import ReadWatch
from datamodules.sample_encoder import open_encoder

if __name__ == "__main__":
    assets, folder, _, log, workers = sys.argv[1:]
    encoder = open_encoder(assets, 512)
    encoder.prepare()
    log = BadSampleLog(log, 5)
    config = WorkerConfig(rank=0, world_size=1, num_workers=int(workers))
    shards = open_shards([folder], None, "train", config, training=True)
    task = ConversationTask(
        encoder, encoder.collator(8, None), log, fill=False, room=Room(positions=512),
        decode_log=log, watch=ReadWatch(2.0, log),
    )
    import os
    path = os.path.join(folder, "train-0.tar")
    os.remove(path)
    os.mkfifo(path)
    for batch in training_batches(
        shards, task, config, micro_batch_size=1, shuffle_buffer_size=0,
        packing_buffer_size=None, remembered=1,
    ):
        print("read", flush=True)
"""


def run(script, *arguments):
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert time.monotonic() - started < 110
    return result


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_hangs_ends_the_run_by_name(
    assets, images, make_record, write_jsonl, tmp_path, workers
):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "one.png").symlink_to(Path(images) / "one.png")
    records = [make_record("<image>Q", "A", image=name) for name in ("one.png", "pipe.png")]
    file = write_jsonl(tmp_path / "some.jsonl", records)
    result = run(READ_FILES, assets, file, tmp_path, tmp_path / "bad.jsonl", workers)
    assert result.returncode != 0
    assert f"read {file}#0" in result.stdout
    assert f"error: Reading {file}#1 of {file} has not ended in read_timeout_seconds=1" in (
        result.stderr
    )
    assert count_bad_samples(tmp_path / "bad.jsonl") == {(file, "hung_read"): 1}


def test_a_shard_that_hangs_ends_the_run_by_name(assets, tmp_path):
    from tests.datamodules import energon_data as data

    samples = [data.good_sample(number) for number in range(5)]
    folder = data.write_set(tmp_path / "some", {"train": samples})
    result = run(READ_SHARDS, assets, folder, "", tmp_path / "bad.jsonl", 0)
    assert result.returncode == 1, result.stderr[-2000:]
    assert f"of {folder} has not ended in read_timeout_seconds=2" in result.stderr
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == folder


def test_what_ends_in_time_is_left_alone(tmp_path):
    watch = ReadWatch(0.2, BadSampleLog(tmp_path / "bad.jsonl", 0))
    for _ in range(20):
        with watch.reading("a", "b"):
            time.sleep(0.02)
    time.sleep(0.5)  # nothing is read, and nothing is watched
    with ReadWatch(None).reading("a", "b"):
        pass
    assert not (tmp_path / "bad.jsonl").exists()
