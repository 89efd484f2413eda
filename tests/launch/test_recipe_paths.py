"""Paths of a recipe on their way to another machine."""

from pathlib import Path

import fiddle as fdl
import pytest

from launch.recipe_paths import PATH_FIELDS, settle_paths
from launch.site import Site


class Data:
    def __init__(self, train_paths=None, image_folder=None, path="", other=""):
        pass


class Inner:
    def __init__(self, save_dir=""):
        pass


class Outer:
    def __init__(self, data=None, loggers=None, log_dir=""):
        pass


@pytest.fixture
def recipe():
    return fdl.Config(
        Outer,
        data=fdl.Config(
            Data, train_paths=["a.jsonl", "/abs/b"], path="s3://bucket/x", other="relative"
        ),
        loggers=[fdl.Config(Inner, save_dir="runs/sft")],
        log_dir="runs",
    )


def site(ssh=False, mounts=None):
    slurm = {"account": "a"}
    if ssh:
        slurm["ssh"] = {"host": "h", "user": "u", "job_folder": "/jobs"}
    container = None if mounts is None else {"image": "i", "mounts": mounts}
    return Site(scheduler="slurm", slurm=slurm, container=container)


def test_paths_become_absolute_wherever_they_are(recipe):
    settle_paths(recipe, site(), Path("/home/me"))
    assert recipe.log_dir == "/home/me/runs"
    assert recipe.loggers[0].save_dir == "/home/me/runs/sft"
    assert recipe.data.train_paths == ["/home/me/a.jsonl", "/abs/b"]
    assert recipe.data.path == "s3://bucket/x"
    assert recipe.data.other == "relative"
    assert "image_folder" not in recipe.data.__arguments__


def test_a_relative_path_for_a_machine_that_does_not_have_it(recipe):
    with pytest.raises(ValueError, match="is relative, and this site's jobs run on machines"):
        settle_paths(recipe, site(ssh=True), Path("/home/me"))


def test_a_path_that_no_mount_has(recipe):
    with pytest.raises(ValueError, match=r"data.train_paths: /abs/b is not in the site's contai"):
        settle_paths(recipe, site(mounts=["/raid:/home", "/x:/y:ro"]), Path("/home/me"))
    recipe.data.train_paths = ["/y/b"]
    settle_paths(recipe, site(mounts=["/raid:/home", "/x:/y:ro"]), Path("/home/me"))


def test_every_path_of_the_data_modules_is_known():
    import inspect

    from datamodules.energon import EnergonDataModule
    from datamodules.preloaded import PreloadedDataModule

    for module in (PreloadedDataModule, EnergonDataModule):
        names = inspect.signature(module).parameters
        looks_like_one = {
            name
            for name in names
            if any(word in name for word in ("path", "folder", "file", "root", "assets", "dir"))
        }
        assert looks_like_one <= PATH_FIELDS
