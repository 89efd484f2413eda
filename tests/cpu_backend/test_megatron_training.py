"""Megatron-Core itself, unmodified, with its Transformer Engine layers: all layouts agree."""

import json
from pathlib import Path

import pytest

import cpu_backend

SCRIPT = str(Path(__file__).parent / "train_tiny_gpt.py")
ONE_PROCESS = {
    "fp32": {},
    "fp32 distributed optimizer": {"distributed_optimizer": True},
    "fp32 recompute": {"recompute": True},
    "dropout": {"dropout": 0.2},
    "dropout recompute": {"dropout": 0.2, "recompute": True},
    "bf16": {"bf16": True},
    "bf16 distributed optimizer": {"bf16": True, "distributed_optimizer": True},
    "bf16 resumed": {"bf16": True, "distributed_optimizer": True, "resume_after": 2},
    "bf16 resumed, whole optimizer": {"bf16": True, "resume_after": 1},
}
TWO_PROCESSES = {
    "tp": {"tp": 2},
    "tp sp": {"tp": 2, "sp": True},
    "pp": {"pp": 2},
    "dp distributed optimizer": {"distributed_optimizer": True},
    "dp overlap": {"overlap": True},
    "dp distributed optimizer overlap": {"distributed_optimizer": True, "overlap": True},
    "tp sp resumed": {"tp": 2, "sp": True, "distributed_optimizer": True, "resume_after": 1},
    "dp resumed": {"distributed_optimizer": True, "resume_after": 1},
}
LAYER_KEYS = {
    "self_attention.linear_proj.weight",
    "self_attention.linear_proj._extra_state",
    "self_attention.core_attention._extra_state",
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "self_attention.linear_qkv._extra_state",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc1._extra_state",
    "mlp.linear_fc2.weight",
    "mlp.linear_fc2._extra_state",
}


@pytest.fixture(scope="module")
def one_process(run_python, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "result.json"
    environment = cpu_backend.child_environment()
    run_python(SCRIPT, json.dumps(ONE_PROCESS), str(out), **environment)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def two_processes(run_two_processes, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "result.json"
    environment = cpu_backend.child_environment()
    run_two_processes(SCRIPT, json.dumps(TWO_PROCESSES), str(out), **environment)
    return json.loads(out.read_text())


def assert_same_training(one, other, tolerance):
    for figure in ("losses", "norms"):
        assert one[figure] == pytest.approx(other[figure], rel=tolerance), figure


def test_one_process_trains_with_transformer_engine_layers(one_process):
    result = one_process["fp32"]
    # Random tokens over a vocabulary of 64: ln 64 = 4.16 at the start, and clipping is at work.
    assert 4.0 < result["losses"][0] < 4.6
    assert len(set(result["losses"])) == 3
    assert min(result["norms"]) > 0.5
    layers = {key.split(".", 3)[-1] for key in result["keys"] if "layers.1." in key}
    assert layers == LAYER_KEYS
    assert {"decoder.final_layernorm.weight", "decoder.final_layernorm._extra_state"} <= set(
        result["keys"]
    )
    assert "TELayerNormColumnParallelLinear" in result["types"]
    assert "TEDotProductAttention" in result["types"]


@pytest.mark.parametrize("name", ["fp32 distributed optimizer", "fp32 recompute"])
def test_the_optimizer_and_recomputation_change_nothing(one_process, name):
    assert_same_training(one_process[name], one_process["fp32"], 1e-6)


def test_recomputation_repeats_dropout(one_process):
    assert one_process["dropout"]["losses"] != one_process["fp32"]["losses"]
    assert_same_training(one_process["dropout recompute"], one_process["dropout"], 1e-6)


def test_bf16_is_near_fp32_with_and_without_the_distributed_optimizer(one_process):
    assert_same_training(one_process["bf16"], one_process["fp32"], 2e-2)
    assert one_process["bf16"]["losses"] != one_process["fp32"]["losses"]
    assert_same_training(one_process["bf16 distributed optimizer"], one_process["bf16"], 1e-6)


@pytest.mark.parametrize("name", ["bf16 resumed", "bf16 resumed, whole optimizer"])
def test_a_checkpoint_continues_the_same_training(one_process, name):
    assert_same_training(one_process[name], one_process["bf16"], 1e-6)


@pytest.mark.parametrize("name", TWO_PROCESSES)
def test_two_processes_train_as_one(one_process, two_processes, name):
    assert_same_training(two_processes[name], one_process["fp32"], 1e-5)
