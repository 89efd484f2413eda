"""The order of training: for every global sample number, which record of which source.

The order is a pure function of the seed, the sizes and the weights. Nothing in it depends on
ranks, workers or how far a run has come, so any stop and resume, and any number of ranks, sees the
same samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from heapq import heapify, heappop, heappush

from datamodules.permutation import Permutation

PERMUTATIONS_KEPT = 64


@dataclass(frozen=True, slots=True)
class _Node:
    """A group of sources: a leaf holds one, an inner node splits its samples between two."""

    weight: int
    source: int | None = None
    left: "_Node | None" = None
    right: "_Node | None" = None


@lru_cache(maxsize=PERMUTATIONS_KEPT)
def _epoch_order(size: int, seed: int, source: int, epoch: int) -> Permutation:
    return Permutation(size, seed, source, epoch)


class Blend:
    """Maps global sample numbers 0, 1, 2, ... without end to records of weighted sources.

    Sources are the leaves of a Huffman tree. Each inner node deals the samples that reach it to
    its two sides by rounding exact integer shares, so after any prefix of n samples a source with
    share w has had w*n, to within half a sample for two sources, one sample for three, and
    1.7 samples for any number (the shares along a path of the tree grow at least like Fibonacci
    numbers). There is no drift: with weights None, every record of every source comes exactly once
    in each run of sum(sizes) samples. The cost of a lookup grows with the depth of the tree only.

    Args:
        sizes: Number of records of each source.
        weights: Positive share of each source in any scale; None takes the sizes.
        seed: Chooses the permutations.
        shuffle: False walks each source in file order.

    Raises:
        ValueError: Sizes or weights that cannot be blended.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes is {list(sizes)}, but every source needs at least one record.")
        if seed < 0:
            raise ValueError(f"seed is {seed}, but must be zero or more.")
        self.sizes = tuple(sizes)
        self.seed = seed
        self.shuffle = shuffle
        self.shares = _integer_shares(self.sizes, weights)
        self._root = _huffman_tree(self.shares)

    def __getitem__(self, number: int) -> tuple[int, int]:
        """Returns (source, record) of the sample with this global number."""
        assert number >= 0, f"sample number {number}"
        source, position = self._deal(number)
        epoch, step = divmod(position, self.sizes[source])
        if not self.shuffle:
            return source, step
        return source, _epoch_order(self.sizes[source], self.seed, source, epoch)[step]

    def _deal(self, number: int) -> tuple[int, int]:
        """Follows sample `number` down the tree: its source, and its place in that source."""
        node = self._root
        while node.source is None:
            assert node.left is not None
            assert node.right is not None
            before = _rounded_share(number, node.left.weight, node.weight)
            after = _rounded_share(number + 1, node.left.weight, node.weight)
            node, number = (node.left, before) if after > before else (node.right, number - before)
        return node.source, number


def check_weights(weights: Sequence[float], sources: int) -> None:
    """Checks the weights of a blend.

    Raises:
        ValueError: There is not one for each source, or one is not a positive number.
    """
    if len(weights) != sources:
        raise ValueError(
            f"weights has {len(weights)} entries for {sources} paths, but must have one for each."
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights is {list(weights)}, but every weight must be above zero.")


def _rounded_share(count: int, part: int, whole: int) -> int:
    return (2 * count * part + whole) // (2 * whole)


def _integer_shares(sizes: tuple[int, ...], weights: Sequence[float] | None) -> tuple[int, ...]:
    if weights is None:
        shares = list(sizes)
    else:
        check_weights(weights, len(sizes))
        # The decimal form is what the user wrote: 0.7 means 7/10, not its nearest binary number.
        exact = [Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*(share.denominator for share in exact))
        shares = [int(share * scale) for share in exact]
    divisor = math.gcd(*shares)
    return tuple(share // divisor for share in shares)


def _huffman_tree(shares: tuple[int, ...]) -> _Node:
    heap = [
        (share, source, _Node(weight=share, source=source)) for source, share in enumerate(shares)
    ]
    heapify(heap)
    order = len(heap)
    while len(heap) > 1:
        weight, _, left = heappop(heap)
        other, _, right = heappop(heap)
        node = _Node(weight=weight + other, left=left, right=right)
        heappush(heap, (node.weight, order, node))
        order += 1
    return heap[0][2]
