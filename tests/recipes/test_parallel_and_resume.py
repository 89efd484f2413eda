"""The same losses on every layout, and after a kill: real trainings in processes of their own."""

import signal
from pathlib import Path

import pytest

from recipes.steps_file import STEPS_FILE, read_steps

STEPS = 10
FROZEN = ("align_tp2_sp", "align_dp2_overlapped", "align_dp2_recompute")
"""Runs with all but the projector frozen."""

LAYOUTS = {
    "tp2": {"strategy": {"tensor_model_parallel_size": 2}},
    "tp2_sp": {"strategy": {"tensor_model_parallel_size": 2, "sequence_parallel": True}},
    "pp2": {"strategy": {"pipeline_model_parallel_size": 2}},
    "dp2": {},
    "dp2_overlapped": {"ddp": {"overlap_grad_reduce": True, "overlap_param_gather": True}},
    "dp2_recompute": {
        "transformer": {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    },
    # Another micro batch and worker processes: neither may show in the loss or the order.
    "dp2_micro4_workers": {"data": {"micro_batch_size": 4, "num_workers": 2}},
}


MLLAMA_LAYOUTS = {
    f"mllama_{name}": LAYOUTS[name]
    for name in ("tp2_sp", "pp2", "dp2_recompute", "dp2_micro4_workers")
}
# Micro-batches of one sample: some have no image, on one rank and not on the other.
MLLAMA_LAYOUTS["mllama_dp2_overlapped"] = LAYOUTS["dp2_overlapped"] | {
    "data": {"micro_batch_size": 1}
}


def steps_of(folder, name):
    return read_steps(Path(folder) / name / STEPS_FILE)


@pytest.fixture(scope="module")
def whole_run(nano_start, nano_mllama_start, run_training, tmp_path_factory):
    """The folder of uninterrupted runs of one process, called whole and mllama_whole."""
    folder = tmp_path_factory.mktemp("trained")
    common = {"dir": str(folder), "steps": STEPS, "save_every": 4}
    run_training(
        [
            nano_start | common | {"name": "whole"},
            nano_mllama_start | common | {"name": "mllama_whole"},
        ]
    )
    return folder


@pytest.fixture(scope="module")
def trained(whole_run, nano_start, nano_mllama_start, run_training):
    """The same folder, with one run per layout."""
    folder = whole_run
    common = nano_start | {"dir": str(folder), "steps": STEPS, "save_every": 4}
    runs = [common | {"name": name} | layout for name, layout in LAYOUTS.items()]
    runs += [common | {"name": name, "stage": "align"} | LAYOUTS[name[6:]] for name in FROZEN]
    runs += [common | {"name": "bf16", "precision": "bf16"}]
    runs += [
        common | nano_mllama_start | {"name": name} | layout
        for name, layout in MLLAMA_LAYOUTS.items()
    ]
    run_training(runs, num_processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*LAYOUTS, *MLLAMA_LAYOUTS])
def test_losses_do_not_depend_on_the_layout(trained, layout):
    reference = "mllama_whole" if layout in MLLAMA_LAYOUTS else "whole"
    whole, parallel = steps_of(trained, reference), steps_of(trained, layout)
    assert [row["step"] for row in parallel] == list(range(STEPS))
    for one, two in zip(whole, parallel, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), one["step"]
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3), one["step"]
    # The model learns in these steps, so equal losses say something.
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.5


@pytest.mark.slow
def test_frozen_parts_train_alike_on_every_layout(trained):
    first, *others = (steps_of(trained, name) for name in FROZEN)
    assert first[-1]["loss"] < first[0]["loss"]
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), one["step"]


@pytest.mark.slow
def test_bf16_stays_near_fp32_and_is_what_the_checkpoint_holds(trained, nemo):
    import torch

    from converters.checkpoint import read_checkpoint
    from models.checkpoint_paths import find_checkpoint

    whole, bf16 = steps_of(trained, "whole"), steps_of(trained, "bf16")
    assert [row["samples"] for row in bf16] == [row["samples"] for row in steps_of(trained, "dp2")]
    for one, two in zip(whole, bf16, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-2), one["step"]
    _, tensors = read_checkpoint(find_checkpoint(trained / "bf16"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "reference"), [("nano_start", "whole"), ("nano_mllama_start", "mllama_whole")]
)
def test_a_killed_run_goes_on_where_its_last_checkpoint_was(
    request, whole_run, run_training, start, reference
):
    name = f"{reference}_killed"
    options = request.getfixturevalue(start) | {
        "dir": str(whole_run),
        "name": name,
        "steps": STEPS,
        "save_every": 4,
    }
    status = run_training([options | {"kill_at_step": 7}], check=False)
    assert status == -signal.SIGKILL
    assert len(steps_of(whole_run, name)) >= 6
    run_training([options])
    whole, resumed = steps_of(whole_run, reference), steps_of(whole_run, name)
    assert [row["step"] for row in resumed] == list(range(STEPS))
    # A few units in the last place of fp32: the kernels' order of sums depends on where the
    # allocator has put a tensor, which a resume changes.
    losses = [row["loss"] for row in resumed]
    assert losses == pytest.approx([row["loss"] for row in whole], rel=1e-6)
    assert [row["samples"] for row in resumed] == [row["samples"] for row in whole]
    assert [row["learning_rate"] for row in resumed] == [row["learning_rate"] for row in whole]
