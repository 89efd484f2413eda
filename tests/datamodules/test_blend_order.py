import math
from collections import Counter
from fractions import Fraction

import pytest

from datamodules.blend import Blend
from datamodules.permutation import Permutation, mix


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4096, 5000])
def test_permutation_is_a_bijection(size):
    order = list(Permutation(size, 7))
    assert len(order) == len(set(order)) == size
    assert (min(order), max(order)) == (0, size - 1)


def test_permutations_depend_on_every_part_of_the_key():
    orders = {tuple(Permutation(50, *key)) for key in [(0,), (1,), (0, 0), (0, 1), (1, 0)]}
    assert len(orders) == 5
    assert list(Permutation(50, 3, 4)) == list(Permutation(50, 3, 4))


def test_permutation_has_no_memory_of_the_order_it_came_from():
    """Neighbours end up as far apart as in a random order, a third of the range on average."""
    size = 10_000
    order = list(Permutation(size, 11))
    distance = sum(abs(a - b) for a, b in zip(order, order[1:], strict=False)) / (size - 1)
    assert distance == pytest.approx(size / 3, rel=0.03)
    fixed = sum(number == at for at, number in enumerate(order))
    assert fixed < 10  # 1 is expected


def test_first_values_of_every_position_are_spread_evenly():
    counts = Counter(Permutation(10, seed)[0] for seed in range(5000))
    assert all(count == pytest.approx(500, abs=100) for count in counts.values())  # 4.7 sigma
    assert len(counts) == 10


def test_mix_is_stable():
    # Changing this would change the order of every run that is resumed.
    assert [mix(0), mix(1, 2), mix(2, 1)] == [mix(0), mix(1, 2), mix(2, 1)]
    assert len({mix(a, b) for a in range(100) for b in range(100)}) == 10_000


WEIGHTS = [
    ([5, 9], [0.7, 0.3], 0.5),
    ([5, 9, 4], [0.6, 0.3, 0.1], 1.0),
    ([5, 9, 4], [1, 1, 1], 1.0),
    ([50, 20, 7, 3, 11, 2], [8, 5, 3, 2, 1, 1], 1.7),
    ([50, 20, 7, 3, 11], [1e-4, 0.2, 0.3, 0.4, 0.0999], 1.7),
    ([1437, 1000, 1000, 1000], None, 1.7),
]


@pytest.mark.parametrize(("sizes", "weights", "bound"), WEIGHTS)
def test_every_prefix_keeps_the_shares(sizes, weights, bound):
    blend = Blend(sizes, weights, seed=3)
    exact = [Fraction(str(weight)) for weight in (weights or sizes)]
    shares = [weight / sum(exact) for weight in exact]
    counts = [0] * len(sizes)
    for number in range(6000):
        counts[blend[number][0]] += 1
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - share * (number + 1)) <= bound


@pytest.mark.parametrize(("sizes", "weights", "bound"), WEIGHTS)
def test_each_source_is_walked_once_per_epoch_in_a_new_order(sizes, weights, bound):
    blend = Blend(sizes, weights, seed=3)
    read = [[] for _ in sizes]
    for number in range(6000):
        source, record = blend[number]
        read[source].append(record)
    for size, records in zip(sizes, read, strict=True):
        epochs = [records[start : start + size] for start in range(0, len(records), size)]
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch)
        full = [tuple(epoch) for epoch in epochs if len(epoch) == size]
        if size > 10:  # smaller ones have so few orders that two epochs may agree
            assert len(set(full)) == len(full)


def test_sizes_as_weights_read_every_record_once_in_a_round():
    sizes = [13, 40, 7]
    blend = Blend(sizes, seed=5)
    everything = {(source, record) for source, size in enumerate(sizes) for record in range(size)}
    for round_number in range(5):
        numbers = range(60 * round_number, 60 * (round_number + 1))
        assert {blend[number] for number in numbers} == everything


def test_any_number_can_be_asked_for_at_any_time():
    expected = [Blend([13, 40, 7], [1, 2, 5], seed=5)[number] for number in range(500)]
    for start in (0, 1, 77, 311, 499):
        resumed = Blend([13, 40, 7], [1, 2, 5], seed=5)
        assert [resumed[number] for number in range(start, 500)] == expected[start:]
    far = Blend([34_000_000, 1_000_000], seed=5)[10**12]
    assert 0 <= far[1] < (34_000_000, 1_000_000)[far[0]]


def test_seed_and_shuffle():
    by_seed = {seed: [Blend([50], seed=seed)[n] for n in range(50)] for seed in (0, 1)}
    assert by_seed[0] != by_seed[1]
    assert [Blend([3], shuffle=False)[n] for n in range(7)] == [(0, n % 3) for n in range(7)]


def test_sources_of_equal_size_have_orders_of_their_own():
    blend = Blend([50, 50], seed=0)
    read = [
        [record for source, record in (blend[n] for n in range(100)) if source == which]
        for which in (0, 1)
    ]
    assert sorted(read[0]) == sorted(read[1])
    assert read[0] != read[1]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([], None, "at least one record"),
        ([3, 0], None, "at least one record"),
        ([3, 4], [1.0], "weights has 1 entries for 2"),
        ([3, 4], [1.0, 0.0], "above zero"),
        ([3, 4], [1.0, -1.0], "above zero"),
        ([3, 4], [1.0, math.nan], "above zero"),
        ([3, 4], [1.0, math.inf], "above zero"),
    ],
)
def test_what_cannot_be_blended(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        Blend(sizes, weights)
