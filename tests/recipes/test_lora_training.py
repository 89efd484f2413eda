"""Real trainings with LoRA and DoRA, in processes of their own: layouts, resume, contents."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.recipes.steps import assert_same_steps, steps_of

STEPS = 5
LAYOUTS = {
    "tp2": {"strategy": {"tensor_model_parallel_size": 2}},
    "tp2_sp": {"strategy": {"tensor_model_parallel_size": 2, "sequence_parallel": True}},
    "pp2": {"strategy": {"pipeline_model_parallel_size": 2}},
    # The embedding is frozen: without a gradient at its input a recomputed block would train
    # nothing.
    "dp2_recompute": {
        "transformer": {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    },
}


# Of the other families: the adapters beside parts that train in full, each at a rate of its own.
RATES = {"optim": {"vision_lr": 5e-4, "projector_lr": 2e-4}}
OTHERS = {
    "llava_dora": {"family": "llava", "peft_scheme": "dora"} | RATES,
    "llava_lora": {"family": "llava", "peft_scheme": "lora"} | RATES,
    "llava_jp_lora": {"family": "llava_jp", "peft_scheme": "lora"} | RATES,
    "nvila_lora": {"family": "nvila", "peft_scheme": "lora"} | RATES,
    "two_scales_dora": {"family": "llava_jp", "vision": "siglip_s2", "peft_scheme": "dora"} | RATES,
}
OTHER_LAYOUTS = {
    "llava_dora_tp2_sp": ("llava_dora", LAYOUTS["tp2_sp"]),
    "llava_lora_pp2": ("llava_lora", LAYOUTS["pp2"]),
    "llava_jp_lora_tp2": ("llava_jp_lora", LAYOUTS["tp2"]),
    "nvila_lora_dp2_recompute": ("nvila_lora", LAYOUTS["dp2_recompute"]),
    "two_scales_dora_pp2": ("two_scales_dora", LAYOUTS["pp2"]),
    # Another module for the same tower.
    "llava_lora_hf_dp2_recompute": ("llava_lora", LAYOUTS["dp2_recompute"] | {"vision": "clip_hf"}),
}


@pytest.fixture(scope="module")
def other_starts(nano_start, nano_llava_starts, tmp_path_factory):
    """Options of the runs of the other families."""
    from converters.assemble import assemble
    from converters.llava_assembly import LlavaAssembly

    starts = nano_llava_starts | {"nvila": nano_start}
    runs = {name: starts[one["family"]] | one for name, one in OTHERS.items()}
    parents = Path(nano_llava_starts["llava_jp"]["init_from"]).parent
    rules = LlavaAssembly(conversation_template="llava_jp", image_scales=(1.0, 0.5))
    two_scales = tmp_path_factory.mktemp("two_scales") / "assembled"
    assemble(parents / "gpt2", parents / "siglip", two_scales, rules)
    runs["two_scales_dora"]["init_from"] = str(two_scales)
    return runs


@pytest.fixture(scope="module")
def others(trained, other_starts, run_training):
    """The folder of the runs, with those of the other families in it; one was killed."""
    common = {"dir": str(trained), "steps": STEPS, "save_every": 2}
    runs = [options | common | {"name": name} for name, options in other_starts.items()]
    killed = other_starts["llava_dora"] | common | {"name": "llava_dora_killed"}
    status = run_training([*runs, killed | {"kill_at_step": 3}], check=False)
    assert status == -signal.SIGKILL
    run_training([killed])
    parallel = [
        other_starts[reference] | common | {"name": name} | layout
        for name, (reference, layout) in OTHER_LAYOUTS.items()
    ]
    run_training(parallel, num_processes=2)
    return trained


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_losses_of_other_families_do_not_depend_on_the_layout(others, layout):
    whole, other = steps_of(others, OTHER_LAYOUTS[layout][0]), steps_of(others, layout)
    assert len(other) == STEPS
    assert_same_steps(whole, other, loss=1e-4, grad_norm=1e-3)
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_run_with_several_rates_goes_on(others):
    whole, resumed = steps_of(others, "llava_dora"), steps_of(others, "llava_dora_killed")
    assert len(resumed) == STEPS
    assert_same_steps(whole, resumed, loss=1e-6, grad_norm=1e-5, learning_rate=0, samples=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OTHERS)
def test_adapters_and_the_other_parts_train_and_the_base_does_not(others, name):
    trainable, changed = changes_of(others, name)
    assert changed == trainable
    of_language = {value for value in trainable if value.startswith("language_model.")}
    assert of_language
    assert all(".adapter." in value for value in of_language)
    assert any("weight_magnitude" in value for value in of_language) == ("dora" in name)
    parts = {value.partition(".")[0] for value in trainable - of_language}
    assert parts == {"vision_model", "vision_projection"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["two_scales_dora_pp2", "llava_lora_hf_dp2_recompute"])
def test_other_families_trained_models_are_the_exported_ones(
    others, name, single_process, tmp_path
):
    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    checkpoint = last_checkpoint(others, name)
    export_checkpoint(checkpoint, tmp_path / "merged")
    report = verify_checkpoint(tmp_path / "merged", checkpoint)
    assert report.passed, report


@pytest.fixture(scope="module")
def start(nano_mllama_start):
    """Options that all runs share."""
    return nano_mllama_start | {"peft_scheme": "lora", "steps": STEPS, "save_every": 2}


@pytest.fixture(scope="module")
def trained(start, run_training, tmp_path_factory):
    """The folder of the runs of one process: whole, killed (and resumed), frozen, bf16."""
    folder = tmp_path_factory.mktemp("lora_runs")
    common = start | {"dir": str(folder)}
    # Begins with a relative path and is resumed from another working directory.
    status = run_training(
        [
            common
            | {
                "name": "killed",
                "kill_at_step": 3,
                "init_from": "imported",
                "working_directory": str(Path(start["init_from"]).parent),
            }
        ],
        check=False,
    )
    assert status == -signal.SIGKILL
    assert len(steps_of(folder, "killed")) == 3
    run_training(
        [
            common | {"name": "whole"},
            common | {"name": "killed", "working_directory": str(folder)},
            common | {"name": "frozen", "steps": 2, "peft": {"freeze_vision_model": True}},
            common | {"name": "bf16", "steps": 2, "precision": "bf16"},
            common | {"name": "dora", "peft_scheme": "dora"},
        ]
    )
    return folder


@pytest.fixture(scope="module")
def parallel(trained, start, run_training):
    """The same folder, with one run per layout."""
    common = start | {"dir": str(trained), "save_every": 1000}
    runs = [common | {"name": name} | layout for name, layout in LAYOUTS.items()]
    dora = {"name": "dora_tp2_sp", "peft_scheme": "dora"}
    run_training([*runs, common | dora | LAYOUTS["tp2_sp"]], num_processes=2)
    return trained


def changes_of(folder, name):
    """Names as a checkpoint has them: (may train, have changed)."""
    noted = json.loads((folder / name / "changes.json").read_text())
    return tuple(
        {value.replace("module.", "").replace("to_wrap.", "") for value in noted[kind]}
        for kind in ("trainable", "changed")
    )


def last_checkpoint(folder, name):
    from models.checkpoint_paths import find_checkpoint

    return find_checkpoint(folder / name)


def stored(checkpoint):
    """Model tensors of a checkpoint by name, without the optimizer's."""
    from megatron.core import dist_checkpointing

    metadata = dist_checkpointing.load_tensors_metadata(str(checkpoint / "weights"))
    return {
        name.removeprefix("module."): tensor
        for name, tensor in metadata.items()
        if name.startswith("module.")
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_do_not_depend_on_the_layout(parallel, layout):
    whole, other = steps_of(parallel, "whole"), steps_of(parallel, layout)
    assert len(other) == STEPS
    assert_same_steps(whole, other, loss=1e-4, grad_norm=1e-3)
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_dora_of_mllama(parallel, single_process, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    whole, other = steps_of(parallel, "dora"), steps_of(parallel, "dora_tp2_sp")
    assert_same_steps(whole, other, loss=1e-4, grad_norm=1e-3)
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.5
    trainable, changed = changes_of(parallel, "dora")
    assert changed == trainable
    assert any("cross_attention" in one and "weight_magnitude" in one for one in trainable)
    checkpoint = last_checkpoint(parallel, "dora_tp2_sp")
    export_checkpoint(checkpoint, tmp_path / "merged")
    report = verify_checkpoint(tmp_path / "merged", checkpoint)
    assert report.passed, report


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_saves_the_same_adapters(parallel, single_process, layout):
    from tests.adapted_model import adapted_layers, load_adapted

    one, two = (
        dict(adapted_layers(load_adapted(last_checkpoint(parallel, name)).module))
        for name in ("whole", layout)
    )
    assert one.keys() == two.keys()
    for name, layer in one.items():
        for end in ("linear_in", "linear_out"):
            first = getattr(layer.adapter, end).weight
            second = getattr(two[name].adapter, end).weight
            assert first.abs().max() > 0
            # Adam turns rounding noise of tiny gradients into steps, so not to the last digit.
            assert (first - second).norm() <= 0.02 * first.norm(), (name, end)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_only_what_shall_train_changes_and_is_saved(trained):
    for name, has_vision in (("whole", True), ("frozen", False)):
        trainable, changed = changes_of(trained, name)
        assert changed == trainable
        of_language = {value for value in trainable if value.startswith("language_model.")}
        assert len(of_language) == 2 * (2 * 4 + 2 * 5)  # self and cross layers, A and B
        assert all(".adapter." in value for value in of_language)
        parts = {value.partition(".")[0] for value in trainable - of_language}
        assert parts == ({"vision_model"} if has_vision else set()) | {"vision_projection"}
        # The vision encoder's equal layers are saved as one tensor without the layer's number.
        saved = set(stored(last_checkpoint(trained, name)))
        assert {value for value in saved if value.startswith("language_model.")} == of_language
        assert {value.partition(".")[0] for value in saved - of_language} == parts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_bf16_saves_the_vision_encoder_too(trained):
    saved = stored(last_checkpoint(trained, "bf16"))
    assert saved.keys() == stored(last_checkpoint(trained, "whole")).keys()
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_run_goes_on_from_another_directory(trained, start):
    whole, resumed = steps_of(trained, "whole"), steps_of(trained, "killed")
    assert len(resumed) == STEPS
    # Wrong moments would show in the norm of the next gradients.
    assert_same_steps(whole, resumed, loss=1e-6, grad_norm=1e-5, learning_rate=0, samples=0)
    for name in ("whole", "killed"):
        path = last_checkpoint(trained, name) / "weights" / "adapter_metadata.json"
        assert json.loads(path.read_text())["model_ckpt_path"] == start["init_from"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_checkpoint_describes_its_adapters(trained):
    from nemo.lightning import io

    from models.lora import LanguageLoRA

    context = last_checkpoint(trained, "frozen") / "context"
    made = io.load_context(context, subpath="model.model_transform")
    assert type(made) is LanguageLoRA
    assert (made.dim, made.alpha, made.dropout) == (8, 32, 0.0)
    assert made.freeze_vision_model
    assert "models.lora.LanguageLoRA" in (context / "model.yaml").read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_trained_model_is_the_exported_one(parallel, single_process, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    checkpoint = last_checkpoint(parallel, "tp2_sp")
    export_checkpoint(checkpoint, tmp_path / "merged")
    report = verify_checkpoint(tmp_path / "merged", checkpoint)
    assert report.passed, report


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_start_that_cannot_work_is_refused(trained, tmp_path):
    from recipes.start import StartOrResume

    checkpoint = last_checkpoint(trained, "frozen")
    with pytest.raises(ValueError, match=r"^init_from: .* holds adapters only; start from"):
        StartOrResume(init_from=str(checkpoint)).setup(trainer=None)
    moved = tmp_path / "checkpoints" / checkpoint.name
    shutil.copytree(checkpoint, moved)
    path = moved / "weights" / "adapter_metadata.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description | {"model_ckpt_path": "/gone/base"}))
    with pytest.raises(ValueError, match=r"^resume: .* holds adapters for /gone/base, which is no"):
        StartOrResume(resume_from_directory=str(moved.parent)).get_trainer_ckpt_path()
