"""Tar shards and files give MLlama the same micro-batches: one encoder stands behind both."""

import json

import pytest
import torch
from megatron.energon import WorkerConfig

from datamodules.bad_samples import BadSampleLog
from datamodules.energon_loaders import evaluation_batches
from datamodules.energon_shards import open_shards
from datamodules.energon_task import ConversationTask
from datamodules.images import ImageFolder
from datamodules.packing import Room
from datamodules.sample_encoder import open_encoder
from sample_loaders.conversation import parse_llava
from tests.datamodules import energon_data as data

MICRO_BATCH = 3


@pytest.fixture(scope="module")
def encoder(llama_assets):
    encoder = open_encoder(llama_assets, 128)
    encoder.prepare()
    return encoder


def record_of(sample, folder):
    """The same sample as a record of a LLaVA file, its image in a folder."""
    name = f"{sample['__key__']}.jpg"
    record = {"conversations": json.loads(sample["json"])}
    if "jpg" in sample:
        (folder / name).write_bytes(sample["jpg"])
        record["image"] = name
    return record


@pytest.mark.parametrize("form", [data.CRUDE, data.VQA], ids=["crude", "vqa"])
def test_shards_and_files_make_the_same_micro_batches(encoder, tmp_path, form):
    # A wide image takes several tiles; every third crude sample has no image at all.
    samples = [data.good_sample(number) for number in range(9)]
    samples[1]["jpg"] = data.encoded_image(1, "PNG", size=(150, 40))
    if form is data.VQA:
        samples = [sample for sample in samples if "jpg" in sample]
    shards = data.write_set(tmp_path / "shards", {"val": samples}, form)
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    collate = encoder.collator(8, None)
    found = evaluation_batches(
        open_shards([shards], None, "val", config, training=False),
        ConversationTask(
            encoder,
            collate,
            BadSampleLog(None, 0),
            fill=True,
            room=Room(positions=128),
            decode_log=BadSampleLog(None, 0),
        ),
        config,
        micro_batch_size=MICRO_BATCH,
        multiple_of=1,
    )
    folder = tmp_path / "images"
    folder.mkdir()
    encoded = [
        encoder.encode(
            parse_llava(record_of(sample, folder), sample["__key__"], "file"), ImageFolder(folder)
        )
        for sample in samples
    ]
    expected = [
        collate(encoded[start : start + MICRO_BATCH])
        for start in range(0, len(encoded), MICRO_BATCH)
    ]
    assert max(batch["tiles_per_image"].max().item() for batch in expected) > 1
    batches = list(found)
    assert len(batches) == len(expected)
    for one, two in zip(batches, expected, strict=True):
        assert one.keys() == two.keys()
        assert [key.split("/")[-1] for key in one["sample_keys"]] == two["sample_keys"]
        for name, value in two.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(one[name], value), name
