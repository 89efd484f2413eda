"""The blends of Heron's stages, over small data sets of their names."""

from pathlib import Path

import pytest
import yaml
from megatron.energon import WorkerConfig

from datamodules.energon_shards import open_shards
from tests.datamodules import energon_data as data

ROOT = Path(__file__).resolve().parents[2]
BLENDS = ROOT / "recipes" / "nvila" / "blends"
SOURCES = {"align": 2, "pretrain": 8, "sft": 8}


def parts_of(stage):
    content = yaml.safe_load((BLENDS / f"{stage}.yaml").read_text(encoding="utf-8"))
    return content["splits"]["train"]["blend_epochized"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All sources, of 1, 2, 3, ... samples."""
    folder = tmp_path_factory.mktemp("data")
    names = sorted({part["path"] for stage in SOURCES for part in parts_of(stage)})
    for number, name in enumerate(names, start=1):
        samples = [data.good_sample(index, name) for index in range(number)]
        data.write_set(folder / name, {"train": samples})
        meta = folder / name / ".nv-meta"
        (meta / "dataset.yaml").rename(meta / "crude.yaml")  # what `prepare` calls it
    return folder


def open_blend(stage, root):
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    path = str(BLENDS / f"{stage}.yaml")
    return open_shards([path], None, "train", config, training=True, data_root=str(root))


@pytest.mark.parametrize(("stage", "sources"), SOURCES.items())
def test_shares_are_sizes_times_repetitions(root, stage, sources):
    opened = open_blend(stage, root)
    assert len(opened) == sources
    sizes = {name.name: number for number, name in enumerate(sorted(root.iterdir()), start=1)}
    for shards, part in zip(opened, parts_of(stage), strict=True):
        assert shards.source == str(root / part["path"])
        assert len(shards) == sizes[part["path"]]
        assert shards.share == pytest.approx(sizes[part["path"]] * part["repetitions"])


def test_every_stage_has_a_blend_and_every_format_of_a_comment_exists():
    from preparation.formats import FORMATS

    assert {path.stem for path in BLENDS.iterdir()} == set(SOURCES)
    for stage in SOURCES:
        text = (BLENDS / f"{stage}.yaml").read_text(encoding="utf-8")
        named = [word.split()[0] for word in text.replace(")", " ").split("--format ")[1:]]
        assert len(named) == SOURCES[stage]
        assert set(named) <= set(FORMATS)


def test_a_missing_source_is_named(root, tmp_path):
    missing = tmp_path / "data"
    missing.mkdir()
    for folder in root.iterdir():
        if folder.name != "coyo":
            (missing / folder.name).symlink_to(folder)
    with pytest.raises(ValueError, match=rf"names {missing}/coyo, which is not there") as raised:
        open_blend("pretrain", missing)
    assert "pretrain.yaml" in str(raised.value)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data_root is .*/none, but there is no such folder"):
        open_blend("align", tmp_path / "none")
