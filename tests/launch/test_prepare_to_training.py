"""From raw data to a packed training on blended shards, and back to a list of what to leave out."""

import json
import tarfile

import pytest
import yaml
from PIL import Image

from launch.__main__ import main

IMAGES = 12


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A LLaVA file and a file of captions about the same twelve images."""
    folder = tmp_path_factory.mktemp("raw")
    conversations, captions = [], []
    for number in range(IMAGES):
        Image.new("RGB", (56, 56), (20 * number, 0, 90)).save(folder / f"{number}.png")
        turns = [
            {"from": "human", "value": "<image>\n数字は何ですか?"},
            {"from": "gpt", "value": str(number)},
        ]
        conversations.append({"image": f"{number}.png", "conversations": turns})
        captions.append({"image": f"{number}.png", "caption": f"数字の {number}"})
    for name, rows in (("llava", conversations), ("captions", captions)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def prepare(raw, form, out, *more):
    request = ["prepare", str(raw / f"{form}.jsonl"), "--format", form, "--jobs", "1"]
    return main([*request, "--out", str(out), *more])


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory):
    """Both as shards in one folder."""
    folder = tmp_path_factory.mktemp("data")
    assert prepare(raw, "llava", folder / "llava", "--samples-per-shard", "4") == 0
    assert prepare(raw, "captions", folder / "captions") == 0
    return folder


@pytest.mark.slow
def test_a_blend_of_shards_is_trained_on_in_packed_rows(data, tmp_path, monkeypatch, nemo):
    from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path / "nemo_run"))
    parts = [
        {"path": name, "repetitions": 2, "dataset_config": "crude.yaml"}
        for name in ("llava", "captions")
    ]
    blend = {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {"blend_epochized": parts}},
    }
    (tmp_path / "blend.yaml").write_text(yaml.safe_dump(blend))
    write_siglip(tmp_path / "siglip")
    write_qwen2(tmp_path / "qwen2", train_tokenizer())
    start = tmp_path / "runs" / "assembled"
    parents = ["--llm", str(tmp_path / "qwen2"), "--vision", str(tmp_path / "siglip")]
    assert main(["assemble", "--family", "nvila", *parents, "--out", str(start)]) == 0
    report = tmp_path / "train.json"
    options = f"dir='{tmp_path}/runs', stage='pretrain', data='shards', init_from='{start}'"
    overrides = [
        f"data.path={tmp_path}/blend.yaml",
        f"data.data_root={data}",
        "data.packing_buffer_size=8",
        "data.global_batch_size=8",
        "data.seq_length=128",
        "trainer.max_steps=3",
    ]
    request = ["train", "--factory", f"nvila({options})", *overrides, "--json", str(report)]
    assert main(request) == 0
    figures = json.loads(report.read_text())
    assert figures["steps"] == 3
    assert figures["bad_samples"] == {}


def test_what_training_lists_can_be_left_out(raw, data, tmp_path):
    from datamodules.bad_samples import BadSampleLog
    from sample_loaders.errors import BadSample, Reason

    shard = sorted((data / "llava").glob("*.tar"))[1]
    with tarfile.open(shard) as archive:
        key = archive.getnames()[0].partition(".")[0]
    log = BadSampleLog(tmp_path / "bad.jsonl", 5)
    # As the data module names a sample of a shard: data set, shard, sample.
    source = str(data / "llava")
    error = BadSample(Reason.UNREADABLE_IMAGE, "It is dark.")
    log.note(f"{source}/{shard.name}/{key}", source, error)
    report = tmp_path / "prepare.json"
    more = ["--exclude", str(tmp_path / "bad.jsonl"), "--json", str(report)]
    assert prepare(raw, "llava", tmp_path / "cleaned", *more) == 0
    figures = json.loads(report.read_text())
    assert (figures["samples_read"], figures["samples_kept"]) == (IMAGES, IMAGES - 1)
    assert figures["rejected"] == {"excluded": 1}
