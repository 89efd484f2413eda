"""Safetensors, read lazily and written as the libraries write them."""

import json

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from converters import hf_weights, lazy
from converters.file_writer import write_files
from converters.hf_weights import HfWeights, plan_weights
from converters.lazy import HeldTensor, Stacked


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    sizes = {"b": (40, 6), "a.z": (3,), "a.b": (7, 2, 2), "日本": (5, 1), "ä": (0, 4), "s": ()}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def write(folder, tensors, jobs=1):
    folder.mkdir()
    held = {name: HeldTensor(tensor) for name, tensor in tensors.items()}
    return write_files(plan_weights(folder, held), jobs, lambda: None)


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16, torch.float32)])
def test_the_bytes_are_those_of_safetensors(tensors, dtypes, tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 64)
    tensors = {
        name: tensor.to(dtypes[number % len(dtypes)])
        for number, (name, tensor) in enumerate(tensors.items())
    }
    write(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    ours = (tmp_path / "ours" / "model.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("jobs", [1, 2])
def test_files_and_index_are_those_of_huggingface_hub(tensors, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_weights, "MAX_SHARD_SIZE", 500)
    written = write(tmp_path / "ours", tensors, jobs)
    (tmp_path / "theirs").mkdir()
    save_torch_state_dict(
        tensors, tmp_path / "theirs", max_shard_size=500, metadata={"format": "pt"}
    )
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    assert len(written) == len(names) - 1 > 1
    for name in names:
        ours, theirs = ((tmp_path / side / name).read_bytes() for side in ("ours", "theirs"))
        if name.endswith(".json"):
            found, wanted = json.loads(ours), json.loads(theirs)
            assert found["weight_map"] == wanted["weight_map"]
            assert found["metadata"]["total_size"] == wanted["metadata"]["total_size"]
        else:
            assert ours == theirs


def test_what_safetensors_has_written_is_read(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    weights = HfWeights(tmp_path, "x.")
    assert weights.tensors.keys() == {f"x.{name}" for name in tensors}
    for name, tensor in tensors.items():
        found = weights.tensors[f"x.{name}"]
        assert (found.shape, found.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(found.whole(), tensor)
        weights.release()


def test_tensors_that_share_their_source_are_written_whole(tmp_path):
    source = HeldTensor(torch.arange(12.0).reshape(6, 2))
    halves = {
        name: Stacked(((source, first, 3),), (3, 2), torch.float32)
        for name, first in (("one", 0), ("two", 3))
    }
    write_files(plan_weights(tmp_path, halves), 1, lambda: None)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(torch.cat([found["one"], found["two"]]), source.tensor)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:4],
        lambda data: data[:30],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data.replace(b'"F32"', b'"F33"'),
        lambda data: data.replace(b"[40,6]", b"[40,7]"),
        lambda data: data.replace(b'{"', b'{x', 1),
        lambda data: (1 << 60).to_bytes(8, "little") + data[8:],
        lambda data: b"",
    ],
)  # fmt: skip
def test_damaged_files_are_named(tensors, damage, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"^hf: .*model\.safetensors is damaged \(.*\); download"):
        HfWeights(tmp_path)
