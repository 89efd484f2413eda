"""Files written by several processes."""

import errno
import hashlib
import os
from functools import partial

import pytest

from converters.file_writer import FileTask, write_files
from converters.manifest import damaged_files, write_manifest


def fill(content, chunk, file):
    for start in range(0, len(content), chunk):
        file.write(content[start : start + chunk])
    return len(content)


def tasks_for(folder, contents, chunk=1000):
    return [
        FileTask(path=folder / name, nbytes=len(content), write=partial(fill, content, chunk))
        for name, content in contents.items()
    ]


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_file_has_its_bytes_and_its_sum(jobs, tmp_path):
    contents = {f"f{number}": os.urandom(5000 * number + 1) for number in range(4)}
    written = write_files(tasks_for(tmp_path, contents), jobs, lambda: None)
    assert [file.path.name for file in written] == list(contents)
    for file, content in zip(written, contents.values(), strict=True):
        assert file.path.read_bytes() == content
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.result == len(content)


def refuse(error, file):
    file.write(b"begun")
    raise error


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("error", [ValueError("the source is damaged"), OSError(errno.ENOSPC, "x")])
def test_a_failure_arrives_as_it_was(jobs, error, tmp_path):
    tasks = tasks_for(tmp_path, {"good": b"content"})
    tasks.append(FileTask(path=tmp_path / "bad", nbytes=1, write=partial(refuse, error)))
    with pytest.raises(type(error)) as caught:
        write_files(tasks, jobs, lambda: None)
    assert caught.value.args == error.args


def test_a_process_that_is_killed_is_told(tmp_path):
    tasks = tasks_for(tmp_path, {"good": b"content"})
    tasks.append(
        FileTask(path=tmp_path / "bad", nbytes=1, write=lambda file: os.kill(os.getpid(), 9))
    )
    with pytest.raises(RuntimeError, match="ended with status -9"):
        write_files(tasks, 2, lambda: None)


def test_the_manifest_is_what_sha256sum_reads_and_sees_changes(tmp_path):
    import subprocess

    (tmp_path / "deep").mkdir()
    contents = {"a": b"1", "deep/b c": b"22", "deep/日本": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    known = {tmp_path / "a": hashlib.sha256(b"1").hexdigest()}
    assert damaged_files(tmp_path) is None
    write_manifest(tmp_path, known)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert damaged_files(tmp_path) == []
    (tmp_path / "deep" / "b c").write_bytes(b"23")
    (tmp_path / "a").unlink()
    different = damaged_files(tmp_path)
    assert different == [f"{tmp_path / 'a'} is missing", f"{tmp_path / 'deep/b c'} has changed"]
    (tmp_path / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(ValueError, match="SHA256SUMS is damaged: it has the line 'nonsense'"):
        damaged_files(tmp_path)
