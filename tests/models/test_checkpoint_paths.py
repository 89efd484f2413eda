import os

import pytest

from models.checkpoint_paths import (
    find_assets,
    find_checkpoint,
    is_checkpoint,
    newest_checkpoint,
    unfinished_checkpoints,
)


def make_checkpoint(path, assets=True):
    (path / "weights").mkdir(parents=True)
    (path / "weights" / "metadata.json").write_text("{}")
    (path / "context" / "assets").mkdir(parents=True)
    if assets:
        (path / "context" / "assets" / "config.json").write_text("{}")
    return path


def test_the_highest_step_wins_whatever_the_times_say(tmp_path):
    run = tmp_path / "run"
    for step in (99, 1099, 199):
        make_checkpoint(run / "checkpoints" / f"step={step}-consumed_samples={step}.0")
    os.utime(run / "checkpoints" / "step=99-consumed_samples=99.0", (4e9, 4e9))
    assert find_checkpoint(run).name == "step=1099-consumed_samples=1099.0"


def test_cut_off_checkpoints_are_passed_over(tmp_path):
    folder = tmp_path / "checkpoints"
    whole = make_checkpoint(folder / "step=1")
    marked = make_checkpoint(folder / "step=2")
    marked.with_name("step=2-unfinished").touch()
    (folder / "step=3" / "weights").mkdir(parents=True)
    # The link to the last checkpoint when the process died after the old one was removed.
    (folder / "step=0-last").symlink_to(folder / "gone")
    assert newest_checkpoint(folder) == whole
    assert unfinished_checkpoints(folder) == [marked]
    assert not is_checkpoint(marked)
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_assets_are_found_from_each_kind_of_start(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "run" / "checkpoints" / "step=1")
    assets = checkpoint / "context" / "assets"
    for start in (assets, checkpoint, tmp_path / "run"):
        assert find_assets(start) == assets


def test_nothing_to_find_is_said_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="neither a whole checkpoint .* nor the folder of a run"):
        find_checkpoint(tmp_path)
    bare = make_checkpoint(tmp_path / "bare", assets=False)
    with pytest.raises(ValueError, match=r"has no config.json; import the model again"):
        find_assets(bare)
