"""Streamed checkpoints beside those that Megatron-Core's own code writes and reads."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

from tests.free_ports import free_port

DISK_BYTES = 2**25
pytestmark = pytest.mark.usefixtures("single_process")


@pytest.fixture(scope="module")
def sources(nemo, tmp_path_factory):
    """A Hugging Face directory of each family; one has its layers stacked, and tied embeddings."""
    from converters.assemble import assemble
    from converters.export_hf import export_checkpoint
    from launch.quickstart.mllama_parent import train_mllama_tokenizer, write_mllama
    from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

    folder = tmp_path_factory.mktemp("sources")
    write_siglip(folder / "siglip")
    write_qwen2(folder / "qwen2", train_tokenizer())
    assemble(folder / "qwen2", folder / "siglip", folder / "assembled")
    export_checkpoint(folder / "assembled", folder / "nvila")
    write_mllama(folder / "mllama", train_mllama_tokenizer())
    return folder


@pytest.fixture(scope="module", params=["nvila", "mllama"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def imported(sources, family, tmp_path_factory):
    """(source, checkpoint, tensors as Megatron-Core names them, made in memory)."""
    from converters.checkpoint import single_process
    from converters.families import family_named
    from converters.finished import open_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.mapping import fuse_tensors

    checkpoint = tmp_path_factory.mktemp("imported") / family
    import_checkpoint(family, sources / family, checkpoint)
    _, assets = open_checkpoint(checkpoint)
    loaded = family_named(family)
    weights = load_file(sources / family / "model.safetensors")
    weights.pop("llm.lm_head.weight", None)
    with single_process():
        tensors = fuse_tensors(loaded.table(assets), weights)
    return sources / family, checkpoint, tensors


def metadata_of(weights):
    return pickle.loads((weights / ".metadata").read_bytes())


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


def test_the_description_is_the_one_that_megatron_core_writes(imported, tmp_path):
    _, checkpoint, tensors = imported
    save_with_megatron(checkpoint, tensors, tmp_path / "theirs")
    ours, theirs = metadata_of(checkpoint / "weights"), metadata_of(tmp_path / "theirs")
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


def test_either_reader_reads_what_either_writer_wrote(imported, tmp_path, monkeypatch):
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
    assert len(metadata_of(tmp_path / "ours" / "weights").storage_data) > len(
        metadata_of(tmp_path / "mixed" / "weights").storage_data
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


KILL_IN_THE_MIDDLE = textwrap.dedent(
    """
    import os, sys
    from launch.__main__ import main
    from converters import file_writer

    done = file_writer.HashedFile.done_with_a_chunk
    count = 0

    def done_and_die(self):
        global count
        done(self)
        count += 1
        if count == 20:
            os.kill(os.getpid(), 9)

    if __name__ == "__main__":
        file_writer.HashedFile.done_with_a_chunk = done_and_die
        sys.exit(main(sys.argv[1:]))
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_kill_in_the_middle_leaves_nothing_and_a_rerun_is_whole(
    imported, verb, project_root, tmp_path
):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.manifest import damaged_files

    source, checkpoint, _ = imported
    out = tmp_path / "out"
    (tmp_path / "kill.py").write_text(KILL_IN_THE_MIDDLE)
    arguments = {
        "import": ["--family", source.name, "--hf", str(source)],
        "export": ["--ckpt", str(checkpoint)],
    }[verb]
    command = [str(tmp_path / "kill.py"), verb, *arguments, "--out", str(out)]
    result = subprocess.run(
        [sys.executable, *command],
        cwd=project_root.path,
        env=project_root.environment,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    assert not out.exists()
    (partial,) = (path for path in tmp_path.iterdir() if path.name.startswith(".out.partial-"))
    assert sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) > 0
    if verb == "import":
        import_checkpoint(source.name, source, out)
    else:
        export_checkpoint(checkpoint, out)
    assert damaged_files(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kill.py", "out"]


@pytest.fixture
def disk(tmp_path):
    """A disk of 32 megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_seen_before_and_while_writing(imported, disk, monkeypatch):
    from converters import output
    from converters.export_hf import export_checkpoint

    _, checkpoint, tensors = imported
    size = sum(tensor.nbytes for tensor in tensors.values())
    filler = disk / "filler"
    filler.write_bytes(b"x" * (DISK_BYTES - size // 2))
    with pytest.raises(ValueError, match=r"^out: 0.0 GB are needed, but .* has 0.0 GB left"):
        export_checkpoint(checkpoint, disk / "out")
    # Another process may take the room while this one writes.
    monkeypatch.setattr(output, "_refuse_lack_of_room", lambda folder, needed: None)
    with pytest.raises(
        ValueError, match=r"out cannot be written \(No space left.*nothing was left"
    ):
        export_checkpoint(checkpoint, disk / "out")
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_read_only_disk_is_one_sentence(imported, disk):
    from converters.export_hf import export_checkpoint
    from converters.request import Request

    _, checkpoint, _ = imported
    command = ["mount", "-o", "remount,ro", str(disk)]
    subprocess.run(command, check=True, capture_output=True)
    for request in (Request(), Request(dry_run=True)):
        with pytest.raises(ValueError, match=r"^out: .* cannot be written.*Read-only"):
            export_checkpoint(checkpoint, disk / "out", request=request)


def test_a_dry_run_checks_everything_and_writes_nothing(imported, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.request import Request

    source, checkpoint, tensors = imported
    request = Request(dry_run=True)
    figures = import_checkpoint(source.name, source, tmp_path / "out", request)
    assert figures["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert figures["tensors"] == len(tensors)
    assert figures["estimated_seconds"] >= 0
    figures = export_checkpoint(checkpoint, tmp_path / "out", request=request)
    weights = load_file(source / "model.safetensors")
    weights.pop("llm.lm_head.weight", None)
    assert figures["tensors"] == len(weights)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("jobs", [1, 3])
def test_another_dtype_is_one_rounding_each_way(imported, jobs, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint
    from converters.request import Request

    source, _, _ = imported
    figures = import_checkpoint(
        source.name, source, tmp_path / "bf16", Request(dtype="bfloat16", jobs=jobs)
    )
    assert figures["dtype"] == "bfloat16"
    request = Request(dtype="float32", jobs=jobs)
    export_checkpoint(tmp_path / "bf16", tmp_path / "hf", request=request)
    found = load_file(tmp_path / "hf" / "model.safetensors")
    for name, tensor in load_file(source / "model.safetensors").items():
        if name in found:
            assert torch.equal(found[name], tensor.to(torch.bfloat16).float()), name
    described = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert described["torch_dtype"] == described["text_config"]["torch_dtype"] == "float32"
    assert (tmp_path / "bf16" / "weights" / "__2_0.distcp").exists() == (jobs == 3)


def test_mixed_types_need_a_dtype(imported, tmp_path):
    import shutil

    from safetensors.torch import save_file

    from converters.import_hf import import_checkpoint
    from converters.request import Request

    source, _, _ = imported
    mixed = tmp_path / source.name
    shutil.copytree(source, mixed)
    weights = load_file(mixed / "model.safetensors")
    name = next(name for name in weights if name.endswith("norm.weight"))
    weights[name] = weights[name].to(torch.bfloat16)
    save_file(weights, mixed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"of type bfloat16, float32; one of .*or the option --dty"
    ):
        import_checkpoint(source.name, mixed, tmp_path / "out")
    import_checkpoint(source.name, mixed, tmp_path / "out", Request(dtype="float32"))
    for options in ({"dtype": "int8"}, {"jobs": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: .* allowed are"):
            Request(**options)


def test_damaged_checkpoints_are_named_and_verify_finds_one_bit(imported, tmp_path):
    import shutil

    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    source, checkpoint, _ = imported
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    archive = copy / "weights" / "__0_0.distcp"
    content = archive.read_bytes()

    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^ckpt: .*__0_0\.distcp is missing or damaged"):
        export_checkpoint(copy, tmp_path / "out")
    archive.unlink()
    with pytest.raises(ValueError, match=r"^ckpt: .*__0_0\.distcp is missing or damaged"):
        export_checkpoint(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    flipped = bytearray(content)
    places = metadata_of(copy / "weights").storage_data.values()
    largest = max(places, key=lambda place: place.length)
    flipped[largest.offset + largest.length // 2] ^= 1
    archive.write_bytes(bytes(flipped))
    result = verify_checkpoint(source, copy, logits=False)
    assert not result.passed
    assert len(result.different_tensors) == 1
    assert result.damaged_files == (f"{archive} has changed",)

    (copy / "weights" / ".metadata").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"^ckpt: .*\.metadata cannot be read .* damaged"):
        export_checkpoint(copy, tmp_path / "out")


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
    text_layers = {"nvila": 2, "mllama": 4}[source.name]
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


EXPORT_AND_VERIFY = textwrap.dedent(
    """
    import sys
    from launch.__main__ import main

    if __name__ == "__main__":
        ckpt, out = sys.argv[1:]
        statuses = [
            main(["export", "--ckpt", ckpt, "--out", out]),
            main(["verify", "--hf", out, "--ckpt", ckpt, "--no-logits"]),
        ]
        print(statuses, sorted({"nemo", "megatron", "lightning", "cpu_backend"} & set(sys.modules)))
    """
)


@pytest.mark.slow
def test_export_and_verify_need_no_nemo(imported, project_root, tmp_path):
    _, checkpoint, _ = imported
    (tmp_path / "script.py").write_text(EXPORT_AND_VERIFY)
    paths = {"PYTHONPATH": str(project_root.path)}
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(checkpoint), str(tmp_path / "out")],
        cwd=project_root.path,
        env=environment | paths,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stdout.splitlines()[-1] == "[0, 0] []", result.stderr[-2000:]
