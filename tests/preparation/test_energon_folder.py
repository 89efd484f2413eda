"""What Energon's commands and loader, and training's own opening, make of a prepared folder."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from preparation.energon_folder import split_shards
from preparation.engine import Preparation
from sample_loaders.document import DocumentSample
from sample_loaders.energon import cook_parts
from tests.preparation.toy_source import (
    TOY,
    caption,
    chat,
    encoded,
    picture,
    request,
    write_source,
)

JPEG, PNG = encoded(picture(1)), encoded(picture(2), "PNG")
WEBP = encoded(picture(3), "WEBP")
RECORDS = [
    caption("a cat", JPEG),
    chat("Which?", "The second.", JPEG, PNG),
    caption("text alone"),
    caption("a dog", WEBP),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    source = write_source(folder / "source", [RECORDS])
    Preparation(TOY, request(source, folder / "made", samples_per_shard=2), io.StringIO()).run()
    # What was prepared can be moved, and the loading code goes with it.
    return shutil.move(folder / "made", folder / "out")


def energon(*arguments, **options):
    command = [Path(sys.executable).with_name("energon"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", **options)


def test_energon_describes_the_folder(prepared):
    shown = energon("info", prepared)
    assert shown.returncode == 0, shown.stderr
    assert "(4 samples, " in shown.stdout
    assert "in 2 shards)" in shown.stdout
    assert "InterleavedSample" in shown.stdout
    assert "`train`: 100%, 4 samples in 2 shards" in shown.stdout


def test_energon_previews_the_samples(prepared):
    shown = energon("preview", prepared, input="y\n" * 4)
    assert shown.returncode == 0, shown.stderr
    for number in range(4):
        assert f"Sample {number}\n" in shown.stdout
    assert "'human: '" in shown.stdout
    assert "The second." in shown.stdout
    assert shown.stdout.count("Tensor(shape=torch.Size([3, 40, 48])") == 4
    assert "Dataset val is empty. Skipping." in shown.stdout
    assert "Error" not in shown.stdout + shown.stderr


def read_all(folder, task, **options):
    from megatron.energon import WorkerConfig, get_loader, get_val_dataset

    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = get_val_dataset(
        folder, split_part="train", worker_config=config, batch_size=1, task_encoder=task, **options
    )
    return list(get_loader(dataset))


def test_energons_loader_reads_typed_samples_with_any_task(prepared):
    from megatron.energon import InterleavedSample, TaskEncoder

    class Task(TaskEncoder):
        def batch(self, samples):
            return samples[0]

    samples = read_all(prepared, Task())
    assert all(isinstance(sample, InterleavedSample) for sample in samples)
    first, second, third, fourth = (sample.sequence for sample in samples)
    expected = torch.from_numpy(
        np.asarray(Image.open(io.BytesIO(JPEG))).transpose(2, 0, 1) / 255
    ).float()
    assert torch.equal(first[0], expected)
    assert first[1:] == ["\na cat"]
    assert [part if isinstance(part, str) else part.shape for part in second] == [
        "human: ",
        (3, 40, 48),
        "\n",
        (3, 40, 48),
        "\nWhich?",
        "gpt: The second.",
    ]
    assert third == ["text alone"]
    assert fourth[0].shape == (3, 40, 48)


def test_energons_loader_reads_parts_with_this_projects_cooker(prepared):
    from megatron.energon import Cooker, TaskEncoder, get_train_dataset, stateless

    @stateless
    def cook(sample):
        return cook_parts(sample, sample["__key__"], "prepared")

    class Task(TaskEncoder):
        cookers = (Cooker(cook=cook),)

        def encode_sample(self, sample):
            return sample

        def batch(self, samples):
            return samples[0]

    samples = read_all(prepared, Task(), dataset_config="crude.yaml")
    assert [sample.images for sample in samples] == [
        {"0.jpg": JPEG},
        {"0.jpg": JPEG, "1.png": PNG},
        {},
        {"0.webp": WEBP},
    ]
    assert isinstance(samples[0].sample, DocumentSample)
    assert samples[0].sample.text == "<image>\na cat"
    assert samples[0].sample.max_tiles == 3
    assert samples[1].sample.images == ("0.jpg", "1.png")

    from megatron.energon import WorkerConfig, get_loader

    training = get_train_dataset(
        prepared,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Task(),
        dataset_config="crude.yaml",
    )
    epoch = [sample.images for sample, _ in zip(get_loader(training), range(4), strict=False)]
    assert sorted(map(len, epoch)) == [0, 1, 1, 2]


def test_trainings_own_opening_reads_it_from_a_blend(prepared, tmp_path):
    from megatron.energon import WorkerConfig
    from megatron.energon.flavors.crude import CrudeWebdataset

    from datamodules.energon_shards import open_shards

    blend = tmp_path / "blend.yaml"
    entry = {"path": str(prepared), "weight": 1, "dataset_config": "crude.yaml"}
    content = {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {"blend": [entry]}},
    }
    blend.write_text(yaml.safe_dump(content))
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    (shards,) = open_shards([str(blend)], None, "train", config, training=False)
    assert isinstance(shards.factory, CrudeWebdataset)
    assert len(shards) == 4
    assert shards.source == str(prepared)


def test_a_split_gets_a_shard_as_soon_as_train_has_one():
    def sizes(names: int, *shares: float) -> list[int]:
        splits = split_shards([str(number) for number in range(names)], shares)
        dealt = [name for part in splits.values() for name in part]
        assert sorted(dealt, key=int) == [str(number) for number in range(names)]
        for part in splits.values():
            assert part == sorted(part, key=int)
        assert list(splits) == ["train", "val", "test"]
        return [len(part) for part in splits.values()]

    assert sizes(5, 1.0) == [5, 0, 0]
    assert sizes(1, 0.98, 0.01, 0.01) == [1, 0, 0]
    assert sizes(2, 0.98, 0.01, 0.01) == [1, 1, 0]
    assert sizes(3, 0.98, 0.01, 0.01) == [1, 1, 1]
    assert sizes(10, 0.7, 0.2, 0.1) == [7, 2, 1]  # rounded down, Energon would leave one to nobody
    assert sizes(1000, 0.98, 0.01, 0.01) == [980, 10, 10]
    assert sizes(10, 8, 1, 1) == [8, 1, 1]
    assert sizes(4, 1.0, 0.0, 1.0) == [2, 0, 2]


def test_validation_shards_are_spread_over_the_source():
    names = [f"{number:03d}" for number in range(200)]
    splits = split_shards(names, (0.9, 0.1))
    assert splits == split_shards(names, (0.9, 0.1))
    places = [names.index(name) for name in splits["val"]]
    assert min(places) < 50
    assert max(places) > 150


def test_a_shard_that_energon_cannot_index_is_an_error(tmp_path):
    from preparation.energon_folder import write_meta

    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(RuntimeError, match="Energon counts other samples in a.tar"):
        write_meta(tmp_path, {"a.tar": 3}, (1.0,), 1, tmp_path)


def test_the_info_counts_what_is_there(prepared):
    info = yaml.safe_load((prepared / ".nv-meta" / ".info.yaml").read_text())
    assert info == {"shard_counts": {"000000-000.tar": 2, "000000-001.tar": 2}}
    report = json.loads((prepared / "report.json").read_text())
    assert report["split_samples"] == {"train": 4, "val": 0, "test": 0}


def test_training_takes_the_crude_description_of_a_folder(prepared):
    from megatron.energon import WorkerConfig
    from megatron.energon.flavors.crude import CrudeWebdataset

    from datamodules.energon_shards import open_shards

    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    (shards,) = open_shards([str(prepared)], None, "train", config, training=False)
    assert isinstance(shards.factory, CrudeWebdataset)
    assert len(shards) == 4
