"""The scripts that recipes become on the shipped clusters, beside those that a person has read.

A script that differs is shown; `UPDATE_SCRIPTS=1` writes the new ones.
"""

import getpass
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import launch.job_script
from launch.code_version import PROJECT_ROOT
from launch.site import read_site
from tests.launch.kubernetes import use_kubernetes

SCRIPTS = Path(__file__).parent / "scripts"
REQUEUE = Path(launch.job_script.__file__).with_name("requeue.sh")
FACTORY = "nvila(stage='sft', size='15b', num_nodes=12, dir='{dir}', init_from='{dir}/pretrain')"
DATA = "data.train_paths={dir}/sft.jsonl data.image_folder={dir}/images"


@pytest.fixture
def submit(nemo, monkeypatch):
    from launch.submit import submit

    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)  # NeMo-Run's shells read it
        yield submit


@pytest.fixture
def recipe(nemo):
    from launch.factory import build_recipe

    def build(folder, factory=FACTORY):
        return build_recipe(factory.format(dir=folder), DATA.format(dir=folder).split())

    return build


@pytest.fixture
def files_are_there(monkeypatch):
    """The checkpoints and data of a cluster are not here; `check_files` has tests of its own."""
    monkeypatch.setattr("launch.submit.check_files", lambda recipe: None)


@pytest.fixture
def other_schedulers(monkeypatch, tmp_path):
    """What they want to find on this machine, for a dry run."""
    for program in ("kubectl", "rsync"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    monkeypatch.setenv("RUNAI_CLIENT_SECRET", "hidden")
    use_kubernetes(monkeypatch, tmp_path, "http://cluster")


@pytest.mark.parametrize(
    ("site", "folder"),
    [
        ("pyxis", "/lustre/me"),
        ("aws_p5", "/fsx/me"),
        ("slurm", "/shared/me"),
        ("docker", "/data/me"),
        ("skypilot", "/data/me"),
        ("kubeflow", "/workspace/me"),
        ("dgx_cloud", "/workspace/me"),
    ],
)
@pytest.mark.usefixtures("files_are_there", "other_schedulers")
def test_the_script_of_a_shipped_site(site, folder, submit, recipe, capsys):
    factory = FACTORY.replace("num_nodes=12", "num_nodes=1") if site == "docker" else FACTORY
    done = submit([recipe(folder, factory)], read_site(site), allow_dirty=True, dryrun=True)
    assert done["dryrun"]
    assert_is_golden(site, capsys.readouterr().out, done["code"])


@pytest.mark.usefixtures("files_are_there")
def test_nodes_on_which_a_run_has_failed_are_left_out(submit, recipe, capsys, tmp_path):
    path = tmp_path / "sft" / "log" / "attempts.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"time": time.time(), "end": 137, "bad_nodes": ["n2", "n5"]}))
    submit([recipe(tmp_path)], read_site("slurm"), allow_dirty=True, dryrun=True)
    printed = capsys.readouterr()
    assert "#SBATCH --exclude=n2,n5\n" in printed.out
    assert f"excluded: n2, n5, which failed ({path})." in printed.err


def assert_is_golden(name, script, code):
    script = normalised(script, code)
    path = SCRIPTS / f"{name}.sh"
    if os.environ.get("UPDATE_SCRIPTS"):
        path.write_text(script, encoding="utf-8")
    assert script == path.read_text(encoding="utf-8")


def normalised(script, code):
    for text, name in (
        (REQUEUE.read_text().rstrip(), "(launch/requeue.sh)"),
        (f"='{code}'", f"={code}"),  # uncommitted changes are said in words
        (code, "COMMIT"),
        (str(Path(sys.executable).parent), "PYTHON_FOLDER"),
        (f"/workspace/{getpass.getuser()}/", "/workspace/USER/"),
        (f"/cache_{getpass.getuser()}/", "/cache_USER/"),
        (str(Path.home()), "HOME"),
    ):
        script = script.replace(text, name)
    for pattern, name in (
        (r"name: sft-[0-9a-f]{6}\b", "name: sft-NAME"),
        (r"sft([_-])\d+", r"sft\1NUMBER"),
        (r"\bsft-[a-z0-9]{13,15}\b", "sft-NAME"),
        (r"(--rdzv-id[\s\"',-]+)\d+", r"\1NUMBER"),
    ):
        script = re.sub(pattern, name, script)
    return script.strip() + "\n"


@pytest.mark.usefixtures("files_are_there")
def test_each_stage_is_a_job_with_its_own_settings_and_starts_from_the_one_before(
    submit, capsys, monkeypatch
):
    from launch.factory import build_stages

    monkeypatch.setattr("launch.submit.check_data_files", lambda recipe: None)
    recipes = build_stages(
        "nvila(size='15b', num_nodes=2, dir='/fsx/heron')",
        "align,pretrain,sft",
        [
            "data.image_folder=/fsx/images",
            "sft.data.train_paths=/fsx/sft.jsonl",
            "align.trainer.max_steps=7",
        ],
    )
    assert [recipe.log.name for recipe in recipes] == ["align", "pretrain", "sft"]
    assert [recipe.resume.init_from for recipe in recipes] == [
        f"/fsx/heron/{start}" for start in ("assembled", "align", "pretrain")
    ]
    align, pretrain, sft = recipes
    assert align.trainer.max_steps == 7 != pretrain.trainer.max_steps
    assert sft.data.train_paths == "/fsx/sft.jsonl"
    assert "train_paths" not in pretrain.data.__arguments__
    assert pretrain.data.image_folder == "/fsx/images"
    done = submit(recipes, read_site("aws_p5"), allow_dirty=True, dryrun=True)
    script = capsys.readouterr().out
    assert script.count("#!/bin/bash") == 3
    for name in ("align", "pretrain", "sft"):
        assert script.count(f"#SBATCH --job-name=vlm.{name}\n") == 1
    assert done["finished"] == []


@pytest.mark.usefixtures("files_are_there")
def test_the_last_example_of_the_readme(submit, capsys, monkeypatch):
    from launch.__main__ import build_parser
    from launch.factory import build_stages

    monkeypatch.setattr("launch.submit.check_data_files", lambda recipe: None)
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m launch (train --site.*)$", text, re.MULTILINE)
    options = build_parser().parse_args(shlex.split(command))
    recipes = build_stages(options.factory, options.stages, options.overrides)
    done = submit(recipes, read_site(options.site), allow_dirty=True, dryrun=True)
    assert_is_golden("heron_15b", capsys.readouterr().out, done["code"])


@pytest.mark.parametrize(
    ("factory", "stages", "message"),
    [
        ("nvila(stage='sft')", "align,sft", "factory: stage does not go with stages="),
        ("nvila(name='x')", "align,sft", "factory: name does not go with stages="),
        ("nvila(size='1b')", "align,,sft", "stages: 'align,,sft' must be different names"),
        ("nvila(size='1b')", "sft,sft", "stages: 'sft,sft' must be different names"),
        ("nvila(size='1b')", "align,dpo", "stage: 'dpo' is unknown"),
        ("mllama(size='11b')", "sft", "mllama does not accept these arguments"),
    ],
)
@pytest.mark.usefixtures("nemo")
def test_stages_that_do_not_exist_are_refused(factory, stages, message):
    from launch.factory import build_stages

    with pytest.raises(ValueError, match=message):
        build_stages(factory, stages)


@pytest.mark.usefixtures("nemo")
def test_a_run_is_finished_when_its_last_step_is_saved(recipe, tmp_path):
    from launch.requests import is_finished

    sft = recipe(tmp_path)
    sft.trainer.max_steps = 6
    folder = tmp_path / "sft"
    assert not is_finished(sft)
    (folder / "log").mkdir(parents=True)
    steps = "".join(f'{{"step": {step}}}\n' for step in range(6))
    (folder / "log" / "steps.jsonl").write_text(steps)
    for step, finished in ((3, False), (5, True)):
        weights = folder / "checkpoints" / f"step={step}-consumed_samples=8.0" / "weights"
        weights.mkdir(parents=True)
        (weights / "metadata.json").write_text("{}")
        assert is_finished(sft) is finished
    sft.trainer.max_steps = 7
    assert not is_finished(sft)


@pytest.mark.usefixtures("files_are_there")
def test_what_a_site_cannot_do_is_refused(submit, recipe):
    pyxis = read_site("pyxis")
    with pytest.raises(ValueError, match="/home/me/.* is not in the site's container"):
        submit([recipe("/home/me")], pyxis, allow_dirty=True, dryrun=True)
    many = FACTORY.replace("num_nodes=12", "num_nodes=6, num_gpus_per_node=16")
    with pytest.raises(ValueError, match="num_gpus_per_node: 16 is more than the 8 GPUs"):
        submit([recipe("/lustre/me", many)], pyxis, allow_dirty=True, dryrun=True)


def test_missing_files_are_refused_before_anything_is_submitted(submit, recipe, tmp_path):
    with pytest.raises(ValueError, match="pretrain"):
        submit([recipe(tmp_path)], read_site("slurm"), allow_dirty=True, dryrun=True)


def test_a_checkout_that_is_reached_by_a_link(nemo, tmp_path, monkeypatch):
    from launch.code_version import CodeVersion
    from launch.executors.job_request import JobRequest
    from launch.executors.slurm import slurm_executor
    from launch.site import Site

    link = tmp_path / "link"
    link.symlink_to(PROJECT_ROOT)
    monkeypatch.setattr("launch.executors.ranks.SITE_DIRECTORY", link / "cpu_backend" / "site")
    site = Site(scheduler="slurm", slurm={"account": "a"})
    recipe = SimpleNamespace(
        trainer=SimpleNamespace(num_nodes=1, devices=1),
        log=SimpleNamespace(log_dir="/r", name="sft"),
    )
    request = JobRequest(recipe, site, CodeVersion("a" * 40, "a" * 40), tmp_path)
    lines = slurm_executor(request).setup_lines
    assert 'export PYTHONPATH="/nemo_run/code/cpu_backend/site${PYTHONPATH' in lines
