"""What cannot be opened gets one sentence."""

import pytest
from megatron.energon import WorkerConfig

from datamodules.energon_shards import open_shards
from tests.datamodules import energon_data as data


def refusal(paths, split="train", **options):
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    with pytest.raises(ValueError, match=r"\.$") as caught:
        open_shards([str(path) for path in paths], None, split, config, training=True, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_cannot_be_opened_gets_one_sentence(crude, tmp_path):
    assert "There is no data set" in refusal([tmp_path / "missing"])
    raw = data.write_set(tmp_path / "raw", {"train": [data.good_sample(0)]}, prepared=False)
    assert f"run `energon prepare {raw}` first" in refusal([raw])
    assert "has no split 'dev', only train, val" in refusal([crude], "dev")
    assert "has no split 'test'" in refusal([crude], "test")
    kind = {
        "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
        "field_map": {"image": "jpg", "caption": "json"},
    }
    other = data.write_set(tmp_path / "other", {"train": [data.good_sample(0)]}, kind)
    assert "samples of type CaptioningSample" in refusal([other])
    blend = data.write_blend(tmp_path / "blend.yaml", {"train": [(str(tmp_path / "gone"), 1.0)]})
    assert "gone" in refusal([blend])
    found = data.write_blend(tmp_path / "found.yaml", {"train": [(crude, 1.0)]})
    assert "asked for 'val'" in refusal([found], "val")
    (tmp_path / "broken.yaml").write_text("splits: [")
    assert "cannot be read" in refusal([tmp_path / "broken.yaml"])


def test_fewer_samples_than_readers_are_refused(make_energon, tmp_path):
    folder = data.write_set(tmp_path / "few", {"train": [data.good_sample(n) for n in range(3)]})
    with pytest.raises(ValueError, match=r"has 3 sample\(s\), but must have one for each of 4"):
        make_energon(folder, workers=2, ranks=2)
