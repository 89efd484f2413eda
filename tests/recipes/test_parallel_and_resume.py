"""The same losses on every layout, and after a kill: real trainings in processes of their own."""

import signal

import pytest

from tests.recipes.steps import assert_same_steps, steps_of

# The first test of the file waits for all of its trainings.
pytestmark = pytest.mark.timeout(3600)

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
    # The same samples in every step, as packed rows of one sample each.
    "dp2_singly_packed": {"data": {"packing_buffer_size": 1}},
}


PACKED = {
    "packing_buffer_size": 12,
    "seq_length": 160,
    "global_batch_size": 16,
    "micro_batch_size": 2,
}
"""Options of the data module; rows of packed runs are compared with a packed run of one process."""

PACKED_LAYOUTS = {
    f"packed_{name}": LAYOUTS[name] | {"data": PACKED} for name in ("tp2_sp", "pp2", "dp2")
}
PACKED_LAYOUTS["packed_dp2_micro4_workers"] = {
    "data": PACKED | {"micro_batch_size": 4, "num_workers": 3}
}

MLLAMA_LAYOUTS = {
    f"mllama_{name}": LAYOUTS[name]
    for name in ("tp2_sp", "pp2", "dp2_recompute", "dp2_micro4_workers")
}
# Micro-batches of one sample: some have no image, on one rank and not on the other.
MLLAMA_LAYOUTS["mllama_dp2_overlapped"] = LAYOUTS["dp2_overlapped"] | {
    "data": {"micro_batch_size": 1}
}
MLLAMA_PACKED_LAYOUTS = {
    f"mllama_packed_{name}": LAYOUTS[name] | {"data": PACKED} for name in ("tp2_sp", "pp2", "dp2")
}


# LLaVA and LLaVA-JP: another tower, another language model, learned positions and tied embeddings
# in the latter.
def _llava_family(name):
    return "llava_jp" if name.startswith("llava_jp") else "llava"


LLAVA_LAYOUTS = {
    f"{family}_{name}": LAYOUTS[name]
    for family in ("llava", "llava_jp")
    for name in ("tp2_sp", "pp2")
}
LLAVA_LAYOUTS["llava_jp_dp2_overlapped"] = LAYOUTS["dp2_overlapped"]
LLAVA_PACKED_LAYOUTS = {
    f"{family}_packed_{name}": LAYOUTS[name] | {"data": PACKED | {"seq_length": 256}}
    for family, name in (("llava", "tp2_sp"), ("llava_jp", "dp2_recompute"))
}

REFERENCES = {
    **dict.fromkeys(LAYOUTS, "whole"),
    **dict.fromkeys(PACKED_LAYOUTS, "packed_whole"),
    **dict.fromkeys(MLLAMA_LAYOUTS, "mllama_whole"),
    **dict.fromkeys(MLLAMA_PACKED_LAYOUTS, "mllama_packed_whole"),
    **{name: f"{_llava_family(name)}_whole" for name in LLAVA_LAYOUTS},
    **{name: f"{_llava_family(name)}_packed_whole" for name in LLAVA_PACKED_LAYOUTS},
}


@pytest.fixture(scope="module")
def whole_run(nano_start, nano_mllama_start, nano_llava_starts, run_training, tmp_path_factory):
    """The folder of runs of one process: uninterrupted ones, and three that were killed.

    A process is killed in its last run, and the next one begins with what that one left. The packed
    run is left as it is.
    """
    folder = tmp_path_factory.mktemp("trained")
    common = {"dir": str(folder), "steps": STEPS, "save_every": 4}
    whole = {
        "whole": nano_start | common,
        "mllama_whole": nano_mllama_start | common,
        "packed_whole": nano_start | common | {"data": PACKED},
        "mllama_packed_whole": nano_mllama_start | common | {"data": PACKED},
    }
    for family, start in nano_llava_starts.items():
        whole[f"{family}_whole"] = start | common
        whole[f"{family}_packed_whole"] = start | common | {"data": PACKED | {"seq_length": 256}}
    # bf16, with Adam's moments in bf16 too.
    state16 = {"precision": "bf16", "optimizer_state": "bf16"}
    whole["llava_jp_state16"] = whole["llava_jp_whole"] | state16
    runs = [options | {"name": name} for name, options in whole.items()]
    for name in ("whole", "mllama_whole", "llava_jp_state16", "packed_whole"):
        killed = whole[name] | {"name": f"{name}_killed"}
        status = run_training([*runs, killed | {"kill_at_step": 7}], check=False)
        assert status == -signal.SIGKILL
        assert len(steps_of(folder, killed["name"])) >= 6
        runs = [killed]
    return folder


@pytest.fixture(scope="module")
def trained(whole_run, nano_start, nano_mllama_start, nano_llava_starts, run_training):
    """The same folder, with one run per layout; the killed packed run goes on in two processes."""
    folder = whole_run
    # Layouts save at their end only.
    common = nano_start | {"dir": str(folder), "steps": STEPS}
    runs = [common | {"name": "packed_whole_killed", "data": PACKED, "save_every": 4}]
    runs += [
        common | {"name": name} | layout for name, layout in (LAYOUTS | PACKED_LAYOUTS).items()
    ]
    runs += [common | {"name": name, "stage": "align"} | LAYOUTS[name[6:]] for name in FROZEN]
    runs += [common | {"name": "bf16", "precision": "bf16"}]
    runs += [
        common | nano_mllama_start | {"name": name} | layout
        for name, layout in (MLLAMA_LAYOUTS | MLLAMA_PACKED_LAYOUTS).items()
    ]
    runs += [
        common | nano_llava_starts[_llava_family(name)] | {"name": name} | layout
        for name, layout in (LLAVA_LAYOUTS | LLAVA_PACKED_LAYOUTS).items()
    ]
    run_training(runs, num_processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", REFERENCES)
def test_losses_do_not_depend_on_the_layout(trained, layout):
    whole, parallel = steps_of(trained, REFERENCES[layout]), steps_of(trained, layout)
    assert len(parallel) == STEPS
    assert_same_steps(whole, parallel, loss=1e-4, grad_norm=1e-3)
    # The model learns in these steps, so equal losses say something.
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.5


@pytest.mark.slow
def test_frozen_parts_train_alike_on_every_layout(trained):
    first, *others = (steps_of(trained, name) for name in FROZEN)
    assert first[-1]["loss"] < first[0]["loss"]
    for other in others:
        assert_same_steps(first, other, loss=1e-4)


@pytest.mark.slow
def test_bf16_stays_near_fp32_and_is_what_the_checkpoint_holds(trained, nemo):
    import torch

    from converters.checkpoint import read_checkpoint
    from models.checkpoint_paths import find_checkpoint

    whole, bf16 = steps_of(trained, "whole"), steps_of(trained, "bf16")
    assert [row["samples"] for row in bf16] == [row["samples"] for row in steps_of(trained, "dp2")]
    assert_same_steps(whole, bf16, loss=1e-2)
    _, tensors = read_checkpoint(find_checkpoint(trained / "bf16"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp2_sp", "pp2", "dp2", "mllama_tp2_sp", "mllama_pp2"])
def test_a_trained_checkpoint_streams_what_megatron_core_reads(trained, layout, nemo):
    """With the optimizer beside the weights, which two ranks have written."""
    import torch

    from converters.checkpoint import read_checkpoint
    from converters.nemo_weights import open_weights
    from models.checkpoint_paths import find_checkpoint

    checkpoint = find_checkpoint(trained / layout)
    _, wanted = read_checkpoint(checkpoint)
    found = open_weights(checkpoint, wanted).tensors
    assert [name for name in wanted if not torch.equal(found[name].whole(), wanted[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["whole", "mllama_whole", "llava_jp_state16"])
def test_a_killed_run_goes_on_where_its_last_checkpoint_was(whole_run, reference):
    whole, resumed = (steps_of(whole_run, name) for name in (reference, f"{reference}_killed"))
    assert len(resumed) == STEPS
    # A few units in the last place of fp32, or of bf16: the kernels' order of sums depends on where
    # the allocator has put a tensor, which a resume changes.
    assert_same_steps(whole, resumed, loss=1e-3 if "state16" in reference else 1e-6)
    assert [row["samples"] for row in resumed] == [row["samples"] for row in whole]
    assert [row["learning_rate"] for row in resumed] == [row["learning_rate"] for row in whole]


@pytest.mark.slow
def test_moments_in_bf16_train_nearly_alike(whole_run):
    whole, state16 = steps_of(whole_run, "llava_jp_whole"), steps_of(whole_run, "llava_jp_state16")
    assert_same_steps(whole, state16, loss=2e-2)
    assert whole[-1]["loss"] != state16[-1]["loss"]


@pytest.mark.slow
def test_a_killed_packed_run_goes_on_with_other_ranks(trained):
    whole, resumed = (steps_of(trained, name) for name in ("packed_whole", "packed_whole_killed"))
    assert len(resumed) == STEPS
    assert_same_steps(whole, resumed, loss=1e-4, grad_norm=1e-3)
