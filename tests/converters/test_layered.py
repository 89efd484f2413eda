"""Both sides computed with one module in memory at a time."""

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("single_process")


def test_layer_by_layer_is_what_whole_models_give(imported, tmp_path):
    from converters.verify import verify_checkpoint

    source, checkpoint, _ = imported
    whole = verify_checkpoint(source, checkpoint, layers=False)
    layered = verify_checkpoint(source, checkpoint, layers=True)
    assert whole.passed
    assert layered.passed
    assert not whole.layer_differences
    assert layered.logit_differences.keys() == whole.logit_differences.keys()
    assert max(layered.logit_differences.values()) <= 1e-5
    text_layers = {"nvila": 2, "mllama": 4, "llava": 2}[source.name]
    with_images = [found for kind, found in layered.layer_differences.items() if "text" not in kind]
    assert len(with_images) == 3
    for found in with_images:
        assert list(found) == [f"layer {number}" for number in range(text_layers)]


def test_layer_by_layer_says_where_models_part(imported, tmp_path):
    import shutil

    from safetensors.torch import save_file

    from converters.verify import verify_checkpoint

    source, checkpoint, _ = imported
    other = tmp_path / source.name
    shutil.copytree(source, other)
    weights = load_file(other / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("layers.1.mlp.down_proj.weight"))
    weights[name] += 0.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (other / "SHA256SUMS").unlink(missing_ok=True)
    result = verify_checkpoint(other, checkpoint, layers=True)
    assert not result.passed
    assert result.different_tensors == (name,)
    for kind, layers in result.layer_differences.items():
        assert layers["layer 0"] < 1e-5, kind
        if "layer 1" in layers:
            assert layers["layer 1"] > 1e-4, kind
