"""Every verb through `main`: exit status, the one sentence, and what is on disk afterwards."""

import json
import subprocess
import sys

import pytest

from launch.__main__ import main


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

    folder = tmp_path_factory.mktemp("parents")
    write_siglip(folder / "siglip")
    write_qwen2(folder / "qwen2", train_tokenizer())
    return folder


@pytest.fixture(scope="module")
def assembled(parents, nemo, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "assembled"
    arguments = ["--llm", str(parents / "qwen2"), "--vision", str(parents / "siglip")]
    assert main(["assemble", "--family", "nvila", *arguments, "--out", str(out)]) == 0
    return out


def refused(capsys, arguments):
    """Run, expect status 2, and return the sentence."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_help_loads_nothing_heavy():
    script = (
        "import sys, launch.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'nemo', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for verb in ("import", "assemble", "export", "verify", "train", "eval"):
        assert verb in finished.stdout


def test_the_verbs_work_in_a_chain(assembled, tmp_path, capsys):
    report = tmp_path / "report.json"
    out = tmp_path / "hf"
    assert main(["export", "--ckpt", str(assembled), "--out", str(out), "--json", str(report)]) == 0
    written = json.loads(report.read_text())
    assert written["verb"] == "export"
    assert written["failed"] is False
    assert written["tensors"] == 85
    again = tmp_path / "again"
    assert main(["import", "--family", "nvila", "--hf", str(out), "--out", str(again)]) == 0
    assert main(["verify", "--hf", str(out), "--ckpt", str(again)]) == 0
    assert "passed: True" in capsys.readouterr().out


def test_verify_ends_with_1_when_the_models_differ(assembled, tmp_path):
    from safetensors.torch import load_file, save_file

    out = tmp_path / "hf"
    assert main(["export", "--ckpt", str(assembled), "--out", str(out)]) == 0
    weights = load_file(out / "model.safetensors")
    weights["llm.model.norm.weight"] += 1
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    arguments = ["verify", "--no-logits", "--hf", str(out), "--ckpt", str(assembled)]
    assert main(arguments) == 1


def test_conversions_refuse_what_cannot_work(assembled, parents, tmp_path, capsys):
    siglip, out = str(parents / "siglip"), str(tmp_path / "out")
    sentence = refused(capsys, ["import", "--family", "nvila", "--hf", siglip, "--out", out])
    assert "holds a model of type 'siglip_vision_model'" in sentence
    sentence = refused(capsys, ["export", "--ckpt", siglip, "--out", out])
    assert "neither a whole checkpoint" in sentence
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep")
    arguments = ["export", "--ckpt", str(assembled), "--out", str(tmp_path / "mine")]
    assert "exists and is not empty" in refused(capsys, arguments)
    assert (tmp_path / "mine" / "file").read_text() == "keep"
    arguments = ["export", "--ckpt", str(assembled), "--out", str(tmp_path / "v1.0")]
    assert "a dot in its name" in refused(capsys, arguments)
    with pytest.raises(SystemExit) as end:
        main(["import", "--family", "gpt", "--hf", siglip, "--out", out])
    assert end.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("factory", "overrides", "sentence"),
    [
        ("nvila(size='7b')", [], "size: '7b' is unknown; allowed are nano, 1b, 2b, 15b, 33b."),
        (
            "nvila(stage='x')",
            [],
            "stage: 'x' is unknown; allowed are align, pretrain, sft, preference.",
        ),
        ("neva(size='7b')", [], "'neva' is unknown; allowed are nvila, nvila_pretrain, llava,"),
        ("nvila(size=nano)", [], "cannot be read"),
        ("nvila(colour='red')", [], "does not accept these arguments"),
        ("nvila(size='nano')", ["data.colour=red"], "data.colour=red: cannot be applied"),
        ("nvila(dir='{tmp}', size='nano')", [], "run `import`, `assemble` or the stage before"),
    ],
)
def test_training_refuses_what_cannot_work(nemo, capsys, tmp_path, factory, overrides, sentence):
    arguments = ["train", "--factory", factory.format(tmp=tmp_path), *overrides]
    assert sentence in refused(capsys, arguments)


def test_every_kind_of_field_can_be_overridden(nemo, tmp_path):
    from launch.factory import build_recipe

    recipe = build_recipe(
        f"nvila(size='nano', dir='{tmp_path}')",
        [
            "resume.init_from=/a/run",
            "trainer.callbacks[3].minutes=0.5",
            "log.ckpt.save_top_k=2",
            "data.packing_buffer_size=7",
        ],
    )
    assert recipe.resume.init_from == "/a/run"
    assert recipe.trainer.callbacks[3].minutes == 0.5
    assert recipe.log.ckpt.save_top_k == 2
    assert recipe.data.packing_buffer_size == 7


def test_training_refuses_another_size_and_several_nodes(assembled, capsys, tmp_path):
    common = f"nvila(dir='{tmp_path}', init_from='{assembled}', num_gpus_per_node=8"
    sentence = refused(capsys, ["train", "--factory", f"{common}, size='1b')"])
    assert "num_layers=2 in its language part, but this recipe's size has 24" in sentence
    sentence = refused(capsys, ["train", "--factory", f"{common}, size='1b', num_nodes=2)"])
    assert "num_nodes: 2 nodes need a scheduler" in sentence


def test_a_report_path_that_cannot_be_written_is_refused_first(assembled, capsys, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "hf"
    for report in (tmp_path, tmp_path / "file" / "report.json"):
        arguments = ["export", "--ckpt", str(assembled), "--out", str(out), "--json", str(report)]
        assert "json: " in refused(capsys, arguments)
    assert not out.exists()
    arguments = ["export", "--ckpt", str(assembled), "--out", str(tmp_path / "file" / "out")]
    assert "is not a folder" in refused(capsys, arguments)


def test_training_refuses_missing_data_before_anything_starts(assembled, capsys, tmp_path):
    factory = f"nvila(dir='{tmp_path}', size='nano', init_from='{assembled}')"
    assert "data.train_paths" in refused(capsys, ["train", "--factory", factory])
    arguments = ["train", "--factory", factory, f"data.train_paths={tmp_path}/none.jsonl"]
    assert "none.jsonl" in refused(capsys, arguments)
    assert list(tmp_path.iterdir()) == []


def test_dryrun_prints_the_resolved_recipe(nemo, capsys):
    arguments = ["train", "--factory", "nvila(stage='align', size='15b')", "trainer.max_steps=7"]
    assert main([*arguments, "data.train_paths=['a.jsonl','b.jsonl']", "--dryrun"]) == 0
    printed = capsys.readouterr().out
    assert "trainer.max_steps = 7" in printed
    assert "data.train_paths = ['a.jsonl', 'b.jsonl']" in printed
    assert "unset" not in printed
    assert "optim.config.lr = 0.001" in printed


def test_eval_refuses_an_unknown_task(capsys, tmp_path):
    arguments = ["eval", "--hf", str(tmp_path), "--task", "poetry", "--data", "x"]
    assert "poetry" in refused(capsys, [*arguments, "--image-folder", "y"])


@pytest.mark.slow
def test_a_training_job_runs_through_nemo_run_and_reports_bad_samples(
    assembled, tmp_path, monkeypatch, nemo
):
    from PIL import Image

    # NeMo-Run reads the variable when its package is imported, which other tests have done.
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", str(tmp_path / "nemo_run"))
    Image.new("RGB", (56, 56)).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with (tmp_path / "train.jsonl").open("w") as file:
        for image in ("good.jpg", "cut.jpg", "absent.jpg"):
            turns = [
                {"from": "human", "value": "<image>\n?"},
                {"from": "gpt", "value": "1"},
            ]
            file.write(json.dumps({"id": image, "image": image, "conversations": turns}) + "\n")
    report = tmp_path / "train.json"
    factory = f"nvila(dir='{tmp_path}/runs', stage='align', init_from='{assembled}')"
    overrides = [f"data.train_paths={tmp_path}/train.jsonl", "trainer.max_steps=2"]
    assert main(["train", "--factory", factory, *overrides, "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    assert figures["steps"] == 2
    assert set(figures["bad_samples"]) == {"missing_image", "unreadable_image"}
    assert figures["bad_samples"]["missing_image"] >= 16
    (counts,) = figures["bad_samples_by_source"].values()
    assert counts == figures["bad_samples"]
    listed = (tmp_path / "runs" / "align" / "log" / "bad_samples.jsonl").read_text()
    assert "absent.jpg" in listed
    assert "cut.jpg" in listed
