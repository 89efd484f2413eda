"""Tensors that are read a few rows at a time."""

import pytest
import torch

from converters import lazy
from converters.lazy import (
    CastTensor,
    HeldTensor,
    MappedFile,
    MappedTensor,
    Stacked,
    row_ranges,
    same_bits,
)


@pytest.fixture
def mapped(tmp_path):
    """A tensor of a file, with other bytes before and behind it, and the same in memory."""
    tensor = torch.randn(7, 3, 2).to(torch.bfloat16)
    content = bytes(tensor.view(torch.uint8).numpy().tobytes())
    (tmp_path / "file").write_bytes(b"x" * 10 + content + b"yy")
    file = MappedFile(tmp_path / "file")
    return file, MappedTensor(file, torch.bfloat16, (7, 3, 2), 10), tensor


def test_rows_of_a_mapped_file_stay_readable_after_a_release(mapped):
    file, found, tensor = mapped
    for start, stop in ((0, 7), (2, 5), (6, 7), (3, 3)):
        assert torch.equal(found.read(start, stop), tensor[start:stop])
        file.release()
    assert torch.equal(found.whole(), tensor)
    assert (found.rows, found.nbytes) == (7, 84)


def test_a_file_larger_than_the_memory_can_be_mapped(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(2**42)
        stream.seek(2**41)
        stream.write(torch.arange(6, dtype=torch.int16).numpy().tobytes())
    found = MappedTensor(MappedFile(path), torch.int16, (3, 2), 2**41)
    assert found.read(1, 3).tolist() == [[2, 3], [4, 5]]


def test_runs_of_rows_are_joined_in_order_with_zeros_between():
    one, two = HeldTensor(torch.arange(8.0).reshape(4, 2)), HeldTensor(-torch.ones(3, 2))
    stacked = Stacked(((one, 1, 2), (None, 0, 1), (two, 0, 3), (one, 0, 1)), (7, 2), torch.float32)
    whole = torch.tensor([[2, 3], [4, 5], [0, 0], [-1, -1], [-1, -1], [-1, -1], [0, 1.0]])
    assert torch.equal(stacked.whole(), whole)
    for start in range(7):
        for stop in range(start, 8):
            assert torch.equal(stacked.read(start, stop), whole[start:stop])


def test_a_cast_rounds_what_is_read():
    values = torch.randn(5, 4)
    cast = CastTensor(HeldTensor(values), torch.bfloat16)
    assert cast.nbytes == 40
    assert torch.equal(cast.read(1, 4), values[1:4].to(torch.bfloat16))


def test_a_scalar_is_one_row():
    scalar = HeldTensor(torch.tensor(3.0))
    assert (scalar.rows, scalar.shape) == (1, ())
    assert torch.equal(scalar.whole(), torch.tensor(3.0))


def test_ranges_cover_all_rows_and_stay_below_the_size_of_a_chunk(monkeypatch):
    for rows, row_bytes, chunk in ((1, 5, 10), (10, 3, 10), (7, 100, 10), (64, 1, 64), (0, 0, 9)):
        monkeypatch.setattr(lazy, "CHUNK_BYTES", chunk)
        ranges = list(row_ranges(rows, rows * row_bytes))
        assert [start for start, _ in ranges[1:]] == [stop for _, stop in ranges[:-1]]
        assert (ranges[0][0], ranges[-1][1]) == (0, rows)
        for start, stop in ranges:
            assert stop - start <= max(1, -(-chunk // max(row_bytes, 1)))


def test_same_bits_sees_one_bit_the_dtype_and_the_shape(monkeypatch):
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 16)
    values = torch.randn(9, 3)
    values[4, 1] = float("nan")
    other = values.clone()
    assert same_bits(HeldTensor(values), HeldTensor(other))
    other.view(torch.int32)[8, 2] ^= 1
    assert not same_bits(HeldTensor(values), HeldTensor(other))
    zero = torch.zeros(2)
    assert not same_bits(HeldTensor(zero), HeldTensor(-zero))
    assert not same_bits(HeldTensor(zero), HeldTensor(zero.half()))
    assert not same_bits(HeldTensor(zero), HeldTensor(zero[None]))
