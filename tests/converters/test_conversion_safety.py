"""What a conversion does when it is killed, where disks end, and with damaged or mixed files."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

from tests.small_disk import mounted

pytestmark = pytest.mark.usefixtures("single_process")
DISK_BYTES = 2**25


KILL_IN_THE_MIDDLE = textwrap.dedent(
    """
    import os, sys
    from launch.__main__ import main
    from converters import hashed_file

    hand_over = hashed_file.HashedFile._hand_over
    count = 0

    def hand_over_and_die(self):
        global count
        hand_over(self)
        count += 1
        if count == 20:
            os.kill(os.getpid(), 9)

    if __name__ == "__main__":
        hashed_file._BUFFER_BYTES = 4096
        hashed_file.HashedFile._hand_over = hand_over_and_die
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
    with mounted(tmp_path / "disk", DISK_BYTES) as folder:
        yield folder


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


def test_damaged_checkpoints_are_named_and_verify_finds_one_bit(imported, tmp_path, read_metadata):
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
    places = read_metadata(copy / "weights").storage_data.values()
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
