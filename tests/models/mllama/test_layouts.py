"""Loss and every gradient on every layout, from one launch of two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.models.mllama.samples import (
    join,
    make_reference,
    make_sample,
    mixed_samples,
    reference_loss,
    with_labels,
)

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("gradients_on_layout.py")
LAYOUTS = {
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2_sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2_recompute": {
        "pipeline_model_parallel_size": 2,
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}


def micro_batches():
    """Two micro-batches, of other images each; the second one's first sample has none."""
    mixed = mixed_samples()
    groups = [mixed[:2], [make_sample(12, seed=11), mixed[3]]]
    return [(group, with_labels(join(group), group)) for group in groups]


@pytest.fixture(scope="module")
def start(single_process, tmp_path_factory):
    """A folder with the weights, the micro-batches and the layouts."""
    from megatron.core import dist_checkpointing

    from converters.checkpoint import build_model
    from converters.mapping import fuse_tensors
    from converters.mllama import STYLES, mllama_table
    from models.mllama.config import config_from_hf

    folder = tmp_path_factory.mktemp("layouts")
    reference = make_reference()
    config = config_from_hf(reference.config)
    rows = mllama_table(reference.config)
    module = build_model(config, torch.float32)
    module.load_state_dict(
        fuse_tensors(rows, STYLES.disk_names(reference.state_dict())), strict=False
    )
    (folder / "start").mkdir()
    dist_checkpointing.save(
        {"state": module.sharded_state_dict(prefix="module.")}, str(folder / "start")
    )
    torch.save([batch for _, batch in micro_batches()], folder / "batches.pt")
    (folder / "layouts.json").write_text(json.dumps(LAYOUTS))
    return folder, module, rows


@pytest.fixture(scope="module")
def computed(start, nemo):
    """The same after both processes have computed every layout."""
    from launch import backend

    environment = {**os.environ, **backend.child_environment(), "OMP_NUM_THREADS": "1"}
    paths = [environment.get("PYTHONPATH", ""), str(ROOT)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), str(start[0])]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return start


@pytest.fixture(scope="module")
def expected():
    """Loss (a sum) and gradients of Hugging Face's model, by name."""
    from converters.mllama import STYLES

    reference = make_reference()
    total = sum(
        reference_loss(reference, group, batch["labels"]) for group, batch in micro_batches()
    )
    total.backward()
    tokens = sum(batch["loss_mask"].sum() for _, batch in micro_batches())
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / tokens
        for name, parameter in reference.named_parameters()
    }
    return total.item(), STYLES.disk_names(gradients)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_every_gradient_do_not_depend_on_the_layout(computed, expected, layout):
    from megatron.core import dist_checkpointing

    from converters.mapping import split_tensors

    folder, module, rows = computed
    loss, gradients = expected
    found = json.loads((folder / layout / "loss.json").read_text())
    assert found == pytest.approx(loss, rel=1e-5)
    sharded = {
        name: value
        for name, value in module.sharded_state_dict(prefix="module.").items()
        if not name.endswith("_extra_state")
    }
    loaded = dist_checkpointing.load({"state": sharded}, str(folder / layout))["state"]
    by_hf_name = split_tensors(
        rows, {name.removeprefix("module."): value for name, value in loaded.items()}
    )
    assert by_hf_name.keys() == gradients.keys()
    for name, wanted in gradients.items():
        largest = wanted.abs().max().item()
        difference = (by_hf_name[name] - wanted).abs().max().item()
        assert difference <= 1e-5 * max(1.0, largest), name
    vision = [value for name, value in gradients.items() if name.startswith("vision_model.")]
    assert all(value.abs().max() > 0 for value in vision)
