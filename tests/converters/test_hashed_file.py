"""A file that is hashed and sent to the disk while it grows."""

import errno
import hashlib
import os
import random

import pytest
import torch

from converters import hashed_file, lazy
from converters.hashed_file import HashedFile
from converters.lazy import FileBytes, HeldTensor, MappedFile, MappedTensor, Stacked


@pytest.fixture(params=[(7, 900), (64, 640), (4096, 10_000)])
def small_sizes(request, monkeypatch):
    """Buffers and windows so small that a short file has many of them, and odd ends."""
    monkeypatch.setattr(hashed_file, "_BUFFER_BYTES", request.param[0])
    monkeypatch.setattr(hashed_file, "WINDOW_BYTES", request.param[1])
    return request.param


def test_writes_and_copies_of_any_length_follow_each_other(small_sizes, tmp_path):
    content = os.urandom(50_000)
    (tmp_path / "source").write_bytes(content)
    source = MappedFile(tmp_path / "source")
    chance = random.Random(0)
    expected = b""
    released = []
    file = HashedFile(tmp_path / "file", lambda: released.append(file.tell()))
    while len(expected) < 45_000:
        begin = chance.randrange(len(content))
        end = min(len(content), begin + chance.choice((0, 1, 5, 64, 9_000)))
        expected += content[begin:end]
        if chance.random() < 0.5:
            assert file.write(content[begin:end]) == end - begin
        else:
            file.copy(FileBytes(source, begin, end - begin))
        assert file.tell() == len(expected)
    assert file.close() == hashlib.sha256(expected).hexdigest()
    assert (tmp_path / "file").read_bytes() == expected
    # Once at least for every few windows: memory that was read is given back all the time.
    window = max(small_sizes)
    assert released
    assert (
        max(later - earlier for earlier, later in zip(released, released[1:], strict=False))
        <= 2 * window
    )


def test_rows_are_copied_where_they_are_a_file_s_and_written_where_they_are_made(
    small_sizes, monkeypatch, tmp_path
):
    monkeypatch.setattr(lazy, "_SMALL_RUN_BYTES", 50)
    tensor = torch.randn(40, 8)
    (tmp_path / "source").write_bytes(b"abc" + tensor.numpy().tobytes())
    stored = MappedTensor(MappedFile(tmp_path / "source"), torch.float32, (40, 8), 3)
    held = HeldTensor(torch.ones(9, 8))
    runs = ((stored, 5, 30), (None, 0, 3), (held, 2, 5), (stored, 0, 1), (stored, 39, 1))
    stacked = Stacked(runs, (40, 8), torch.float32)
    pieces = list(stacked.pieces(0, 40))
    assert [isinstance(piece, FileBytes) for piece in pieces] == [True, False, False, True, True]
    for start, stop in ((0, 40), (3, 36), (29, 31), (12, 12), (38, 40)):
        file = HashedFile(tmp_path / f"{start}_{stop}", lambda: None)
        file.append(stacked, start, stop)
        file.close()
        written = (tmp_path / f"{start}_{stop}").read_bytes()
        assert written == stacked.read(start, stop).numpy().tobytes()


def test_a_source_that_became_shorter_is_named(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"x" * 100)
    source = MappedFile(path)
    os.truncate(path, 60)
    file = HashedFile(tmp_path / "file", lambda: None)
    with pytest.raises(ValueError, match="source has been cut short while it was read"):
        file.copy(FileBytes(source, 50, 20))
    file.close()


def test_a_file_system_that_cannot_send_a_part_is_synchronised_at_the_end(
    small_sizes, monkeypatch, tmp_path
):
    asked = refusing(monkeypatch, errno.ENOSYS)
    file = HashedFile(tmp_path / "file", lambda: None)
    file.write(b"abcdefgh" * 20_000)
    assert file.close() == hashlib.sha256(b"abcdefgh" * 20_000).hexdigest()
    assert len(asked) == 1


def test_a_disk_that_fails_while_it_is_sent_to_is_told(small_sizes, monkeypatch, tmp_path):
    refusing(monkeypatch, errno.EIO)
    file = HashedFile(tmp_path / "file", lambda: None)
    with pytest.raises(OSError, match="Input/output error"):
        file.write(b"abcdefgh" * 20_000)
    with pytest.raises(OSError, match="Input/output error"):
        file.close()


def refusing(monkeypatch, number):
    """Let the system call fail; return what it was asked for."""
    asked = []

    class Library:
        def sync_file_range(self, *arguments):
            asked.append(arguments)
            return -1

    monkeypatch.setattr(hashed_file.ctypes, "CDLL", lambda *_, **__: Library())
    monkeypatch.setattr(hashed_file.ctypes, "get_errno", lambda: number)
    return asked
