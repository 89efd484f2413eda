"""Streamed checkpoints beside those that Megatron-Core's own code writes and reads."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.free_ports import free_port

pytestmark = pytest.mark.usefixtures("single_process")


def save_with_megatron(checkpoint, tensors, folder):
    """Builds the model with these weights and lets Megatron-Core write it."""
    from megatron.core import dist_checkpointing

    from converters.checkpoint import build_model
    from converters.finished import open_checkpoint

    family, assets = open_checkpoint(checkpoint)
    model = build_model(family.describe(assets), torch.float32)
    model.load_state_dict(tensors, strict=False)
    folder.mkdir()
    dist_checkpointing.save(
        {"sharded_state_dict": model.sharded_state_dict(prefix="module.")},
        str(folder),
        content_metadata={},
    )


def test_the_description_is_the_one_that_megatron_core_writes(imported, tmp_path, read_metadata):
    _, checkpoint, tensors = imported
    save_with_megatron(checkpoint, tensors, tmp_path / "theirs")
    ours, theirs = read_metadata(checkpoint / "weights"), read_metadata(tmp_path / "theirs")
    assert ours.state_dict_metadata.keys() == theirs.state_dict_metadata.keys()
    for name, wanted in theirs.state_dict_metadata.items():
        found = ours.state_dict_metadata[name]
        assert type(found) is type(wanted), name
        if hasattr(wanted, "chunks"):
            assert (found.size, found.properties) == (wanted.size, wanted.properties), name
            chunks = [
                sorted((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in one.chunks)
                for one in (found, wanted)
            ]
            assert chunks[0] == chunks[1], name
    assert ours.mcore_data == theirs.mcore_data
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    found, wanted = (
        json.loads((folder / "metadata.json").read_text())
        for folder in (checkpoint / "weights", tmp_path / "theirs")
    )
    assert found == wanted
    common = [
        torch.load(folder / "common.pt", weights_only=False)
        for folder in (checkpoint / "weights", tmp_path / "theirs")
    ]
    assert common[0] == common[1]


def test_either_reader_reads_what_either_writer_wrote(
    imported, tmp_path, monkeypatch, read_metadata
):
    from converters import lazy
    from converters.checkpoint import read_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.nemo_weights import open_weights

    source, checkpoint, tensors = imported
    save_with_megatron(checkpoint, tensors, tmp_path / "theirs")
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 3000)
    import_checkpoint(source.name, source, tmp_path / "ours")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "theirs").rename(tmp_path / "mixed" / "weights")
    # Theirs by our reader, and ours, in many chunks, by both.
    (tmp_path / "mixed" / "context").symlink_to(checkpoint / "context")
    assert len(read_metadata(tmp_path / "ours" / "weights").storage_data) > len(
        read_metadata(tmp_path / "mixed" / "weights").storage_data
    )
    _, by_megatron = read_checkpoint(tmp_path / "ours")
    found = {
        name: {key: tensor.whole() for key, tensor in open_weights(path, tensors).tensors.items()}
        for name, path in (("ours", tmp_path / "ours"), ("theirs", tmp_path / "mixed"))
    } | {"by_megatron": by_megatron}
    for name, read in found.items():
        assert read.keys() == tensors.keys(), name
        assert [key for key in tensors if not torch.equal(read[key], tensors[key])] == [], name


LOAD_LAYOUTS = textwrap.dedent(
    """
    import json, sys
    from launch import backend
    backend.activate(cpu=True)
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    import nemo.lightning
    from converters.finished import open_checkpoint

    if __name__ == "__main__":
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
        for checkpoint, tensor, pipeline in json.loads(sys.argv[1]):
            parallel_state.initialize_model_parallel(tensor, pipeline)
            model_parallel_cuda_manual_seed(0)
            family, assets = open_checkpoint(checkpoint)
            config = family.describe(assets)
            config.tensor_model_parallel_size = tensor
            config.pipeline_model_parallel_size = pipeline
            config.pipeline_dtype = torch.float32
            config.use_cpu_initialization = True
            module = config.configure_model()
            for parameter in module.parameters():
                parameter.data.fill_(float("nan"))
            sharded = module.sharded_state_dict(prefix="module.")
            sharded = {k: v for k, v in sharded.items() if not k.endswith("_extra_state")}
            loaded = dist_checkpointing.load({"state_dict": sharded}, checkpoint + "/weights")
            state = {}
            for name, value in loaded["state_dict"].items():
                for number, layer in enumerate(module.language_model.decoder.layers):
                    place = "module.language_model.decoder.layers."
                    if name.startswith(f"{place}{number}."):  # a stage counts its layers from 0
                        rest = name.removeprefix(f"{place}{number}")
                        name = f"{place}{layer.layer_number - 1}{rest}"
                        break
                state[name.removeprefix("module.")] = value
            torch.save(state, f"{checkpoint}.tp{tensor}.pp{pipeline}.{rank}")
            parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    """
)


@pytest.mark.slow
def test_megatron_core_loads_every_layout(imported, project_root, tmp_path, monkeypatch):
    from converters import lazy
    from converters.import_hf import import_checkpoint

    source, _, tensors = imported
    # Chunks that end anywhere, so that a rank's part begins within one.
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 5000)
    checkpoint = str(tmp_path / "checkpoint")
    import_checkpoint(source.name, source, checkpoint)
    (tmp_path / "load.py").write_text(LOAD_LAYOUTS)
    layouts = [(checkpoint, 2, 1), (checkpoint, 1, 2)]
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), str(tmp_path / "load.py"), json.dumps(layouts)]
    result = subprocess.run(
        [sys.executable, *command],
        cwd=project_root.path,
        env=project_root.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-9000:]
    stages = [torch.load(f"{checkpoint}.tp1.pp2.{rank}") for rank in range(2)]
    embedding = "language_model.embedding.word_embeddings.weight"
    for stage in stages:
        for name, tensor in stage.items():
            # The last stage has a copy of a tied embedding as its output layer.
            whole = tensors.get(name, tensors[embedding])
            assert torch.equal(tensor, whole), name
    assert tensors.keys() <= stages[0].keys() | stages[1].keys()
    assert tensors.keys() - stages[0].keys()
    halves = [torch.load(f"{checkpoint}.tp2.pp1.{rank}") for rank in range(2)]
    assert halves[0].keys() == tensors.keys()
    for name, whole in tensors.items():
        one, two = (half[name] for half in halves)
        if one.shape == whole.shape:
            assert torch.equal(one, whole), name
            assert torch.equal(two, whole), name
        elif "linear_fc1" in name and "language_model" in name:
            # Each rank has its part of the gate, and then its part of the up projection.
            gate, up = (torch.cat(parts) for parts in zip(one.chunk(2), two.chunk(2), strict=True))
            assert torch.equal(torch.cat([gate, up]), whole), name
        else:
            (axis,) = (axis for axis, size in enumerate(whole.shape) if one.shape[axis] != size)
            assert torch.equal(torch.cat([one, two], dim=axis), whole), name
