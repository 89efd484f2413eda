"""Which samples share a row: against a search through all subsets."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.packing import Room, fill_row


def best_fill(lengths, room):
    """The fullest row that holds the first sample, by trying every subset of the others."""
    others = range(1, len(lengths))
    sums = (
        lengths[0] + sum(lengths[number] for number in chosen)
        for size in range(len(lengths))
        for chosen in combinations(others, size)
    )
    return max(total for total in sums if total <= room)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    room=st.integers(40, 80),
)
@settings(max_examples=150, deadline=None)
def test_the_row_is_as_full_as_it_can_be_with_the_oldest_sample(lengths, room):
    row = fill_row(lengths, [0] * len(lengths), Room(positions=room))
    assert row[0] == 0
    assert row == sorted(set(row))
    assert sum(lengths[number] for number in row) == best_fill(lengths, room)


@given(
    samples=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), min_size=1, max_size=9),
)
@settings(max_examples=150, deadline=None)
def test_neither_bound_is_passed(samples):
    lengths, tiles = zip(*samples, strict=True)
    row = fill_row(lengths, tiles, Room(positions=60, tiles=8))
    assert row[0] == 0
    assert sum(lengths[number] for number in row) <= 60
    assert sum(tiles[number] for number in row) <= 8


def test_too_many_tiles_make_way_for_other_company():
    # 2 and 3 would fill the row, but 3 has too many tiles; without it 1 and 2 are the best.
    assert fill_row([4, 3, 2, 4], [1, 1, 1, 9], Room(positions=10, tiles=5)) == [0, 1, 2]
    assert fill_row([4, 3, 2, 4], [1, 1, 1, 9], Room(positions=10)) == [0, 2, 3]


def test_of_equally_full_rows_the_older_samples_come():
    assert fill_row([2, 3, 3, 3], [0] * 4, Room(positions=5)) == [0, 1]
    assert fill_row([2, 1, 1, 2, 2], [0] * 5, Room(positions=4)) == [0, 1, 2]


def test_a_sample_that_fills_the_row_is_alone():
    assert fill_row([8, 1, 1], [0] * 3, Room(positions=8)) == [0]
    with pytest.raises(AssertionError, match="9 positions in rows of 8"):
        fill_row([9], [0], Room(positions=8))
    with pytest.raises(AssertionError, match="7 tiles in rows of 6"):
        fill_row([1], [7], Room(positions=8, tiles=6))
