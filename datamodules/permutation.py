"""Seeded permutations that are computed position by position and need no memory.

A Feistel network over the next power of four, walked along its cycle until it lands inside the
range, is a bijection of the range. Unlike a shuffled array it gives any position at once, for data
sets of any size and for any epoch, and it does not depend on the version of a random generator.
"""

from collections.abc import Iterator

ROUNDS = 8
MASK64 = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """Hashes non-negative integers to 64 well-mixed bits (the finaliser of splitmix64)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & MASK64)) & MASK64
        state = (state + 0x9E3779B97F4A7C15) & MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
        state ^= state >> 31
    return state


class Permutation:
    """A bijection of `range(size)` chosen by a key.

    Args:
        size: Number of positions, at least 1.
        key: Any integers, for example seed, source and epoch.
    """

    def __init__(self, size: int, *key: int) -> None:
        assert size > 0, f"a permutation of {size} positions"
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        self._round_keys = [mix(*key, turn) for turn in range(ROUNDS)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.size:
            raise IndexError(f"position {position} of a permutation of {self.size}")
        value = self._scramble(position)
        while value >= self.size:
            value = self._scramble(value)
        return value

    def __iter__(self) -> Iterator[int]:
        return (self[position] for position in range(self.size))

    def _scramble(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._half_mask
        for round_key in self._round_keys:
            left, right = right, left ^ (mix(round_key, right) & self._half_mask)
        return (left << self._half_bits) | right
