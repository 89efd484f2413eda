import numpy as np
import pytest

from preparation.duplicates import NOT_DROPPED, find_exact, find_near


def test_the_first_of_equal_contents_is_kept():
    content = np.array([[1, 2], [3, 4], [1, 2], [1, 5], [3, 4], [1, 2]], np.uint64)
    assert find_exact(content).tolist() == [-1, -1, 0, -1, 1, 0]
    assert find_exact(content[:0]).tolist() == []


def greedy(samples: list[list[int | None]], skip: list[bool], bits: int) -> list[bool]:
    """Compares everything with everything."""
    kept: list[int] = []
    dropped = []
    for pictures, is_skipped in zip(samples, skip, strict=True):
        is_near = bool(pictures) and all(
            picture is not None and any((picture ^ other).bit_count() <= bits for other in kept)
            for picture in pictures
        )
        dropped.append(is_near and not is_skipped)
        if not is_near and not is_skipped:
            kept += [picture for picture in pictures if picture is not None]
    return dropped


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 7, 9, 15])
def test_near_duplicates_are_those_of_a_comparison_of_all(bits):
    chance = np.random.default_rng(bits)
    centres = [int(value) for value in chance.integers(0, 2**63, 25)]
    samples: list[list[int | None]] = []
    for _ in range(400):
        pictures: list[int | None] = []
        for _ in range(int(chance.integers(0, 4))):
            value = centres[int(chance.integers(len(centres)))]
            for bit in chance.choice(64, int(chance.integers(0, bits + 3)), replace=False):
                value ^= 1 << int(bit)
            pictures.append(None if chance.random() < 0.05 else value)
        samples.append(pictures)
    skip = (chance.random(len(samples)) < 0.1).tolist()
    flat = [picture for pictures in samples for picture in pictures]
    found = find_near(
        np.array([picture or 0 for picture in flat], np.uint64),
        np.array([picture is not None for picture in flat]),
        np.array([len(pictures) for pictures in samples]),
        np.array(skip),
        bits,
    )
    expected = greedy(samples, skip, bits)
    assert (found != NOT_DROPPED).tolist() == expected
    assert 20 < sum(expected) < 380
    for sample, keeper in enumerate(found):
        if keeper != NOT_DROPPED:
            last = samples[sample][-1]
            assert keeper < sample
            assert not expected[keeper]
            distances = [
                (last ^ other).bit_count() for other in samples[keeper] if other is not None
            ]
            assert min(distances) <= bits


def test_many_equal_pictures_do_not_make_many_pairs():
    same = np.full(300_000, 12345, np.uint64)
    ones = np.ones(len(same), np.int64)
    found = find_near(same, ones.astype(bool), ones, np.zeros(len(same), bool), 4)
    assert found[0] == NOT_DROPPED
    assert (found[1:] == 0).all()
