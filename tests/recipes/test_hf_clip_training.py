"""CLIP as transformers' module: the trainings and the checkpoints are those of Megatron-Core's."""

import signal

import pytest

from tests.recipes.steps import assert_same_steps, steps_of

# The first test of the file waits for all of its trainings.
pytestmark = pytest.mark.timeout(3600)

STEPS = 6
# The tower trains too, and its optimizer's state is in the checkpoints.
COMMON = {"steps": STEPS, "save_every": 2, "model": {"freeze_vision_model": False}}
LAYOUTS = {
    "tp2_sp": {"strategy": {"tensor_model_parallel_size": 2, "sequence_parallel": True}},
    "dp2_overlapped_recompute": {
        "ddp": {"overlap_grad_reduce": True, "overlap_param_gather": True},
        "transformer": {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
    },
}


@pytest.fixture(scope="module")
def trained(nano_llava_starts, run_training, tmp_path_factory):
    """The folder of the runs; that named swapped changes its tower and its layout on the way."""
    folder = tmp_path_factory.mktemp("hf_clip")
    start = nano_llava_starts["llava"] | COMMON | {"dir": str(folder)}
    swapped = start | {"name": "swapped"}
    first = swapped | {"vision": "clip_hf", "kill_at_step": 3}
    runs = [start | {"name": vision, "vision": vision} for vision in ("clip", "clip_hf")]
    assert run_training([*runs, first], check=False) == -signal.SIGKILL
    runs = [
        start | {"name": name, "vision": "clip_hf"} | layout for name, layout in LAYOUTS.items()
    ]
    second = swapped | {"vision": "clip", "kill_at_step": 5}
    assert run_training([*runs, second], num_processes=2, check=False) != 0
    assert len(steps_of(folder, "swapped")) == 5
    run_training([swapped | {"vision": "clip_hf"}])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_hf", "swapped", *LAYOUTS])
def test_the_steps_are_those_of_megatron_cores_tower(trained, name):
    whole, found = steps_of(trained, "clip"), steps_of(trained, name)
    assert len(found) == STEPS
    assert_same_steps(whole, found, loss=1e-4, grad_norm=1e-3)


@pytest.mark.slow
def test_what_it_trained_is_exported(trained, nano_llava_starts, tmp_path):
    from safetensors.torch import load_file

    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint
    from models.checkpoint_paths import find_checkpoint

    for name in ("clip", "clip_hf"):
        checkpoint = find_checkpoint(trained / name)
        export_checkpoint(checkpoint, tmp_path / name)
        assert verify_checkpoint(tmp_path / name, checkpoint).passed
    # As another reader sees it: the weights that both towers were trained to.
    clip, clip_hf = (
        load_file(tmp_path / name / "model.safetensors") for name in ("clip", "clip_hf")
    )
    assert clip.keys() == clip_hf.keys()
    for name, tensor in clip.items():
        assert (tensor - clip_hf[name]).abs().max() <= 1e-4, name
    moved = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    export_checkpoint(nano_llava_starts["llava"]["init_from"], tmp_path / "start")
    start = load_file(tmp_path / "start" / "model.safetensors")
    assert (clip_hf[moved] - start[moved]).abs().max() > 1e-4
