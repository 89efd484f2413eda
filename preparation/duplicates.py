"""Which samples repeat others: decided at the end and in the order of the source.

An exact duplicate has the same text and the same bytes of images as an earlier sample. A near
duplicate has pictures only that samples kept before it have too; texts are not compared, so a data
set that asks many questions about one picture must not be filtered so. Nearly uniform pictures
have no perceptual hash and are nobody's duplicate.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NOT_DROPPED = -1
_BANDS = 4
_BAND_BITS = 16
_PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is dropped.

    Attributes:
        exact: For each sample the first with the same content, or `NOT_DROPPED`.
        near: For each sample one that was kept with the same pictures, or `NOT_DROPPED`.
    """

    exact: np.ndarray
    near: np.ndarray

    def dropped(self) -> np.ndarray:
        """Tells for each sample whether it goes."""
        return (self.exact != NOT_DROPPED) | (self.near != NOT_DROPPED)


def find_exact(content: np.ndarray) -> np.ndarray:
    """Finds for each sample the first one with the same content.

    Args:
        content: Two 64-bit words of a hash for each sample, [samples, 2].

    Returns:
        Number of the first sample with this content, `NOT_DROPPED` for the first itself.
    """
    order = np.lexsort((content[:, 1], content[:, 0]))  # stable, so equal ones stay in order
    ordered = content[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    del ordered
    firsts = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]] if len(order) else order
    result = np.empty(len(order), np.int64)
    result[order] = np.where(starts, NOT_DROPPED, firsts)
    return result


def find_near(
    hashes: np.ndarray,
    is_hashed: np.ndarray,
    images: np.ndarray,
    skip: np.ndarray,
    bits: int,
) -> np.ndarray:
    """Finds the samples whose pictures were all in samples that are kept before them.

    Args:
        hashes: Perceptual hashes of all images, in the order of the samples.
        is_hashed: Whether an image has one.
        images: How many images each sample has.
        skip: Samples that are dropped already, and so are compared with nothing.
        bits: Hashes that differ in at most so many bits are of one picture.

    Returns:
        A sample that is kept with the last of its pictures, or `NOT_DROPPED`.
    """
    result = np.full(len(images), NOT_DROPPED, np.int64)
    values, numbers, counts = np.unique(hashes[is_hashed], return_inverse=True, return_counts=True)
    if not len(values):
        return result
    neighbours, starts = _neighbours(values, bits)
    # All other pictures are like no other, and most samples have only such.
    is_shared = (counts > 1) | (np.diff(starts) > 0)
    of_image = np.full(len(hashes), -1, np.int64)
    of_image[is_hashed] = numbers
    owner = np.repeat(np.arange(len(images)), images)
    has_shared = of_image >= 0
    has_shared[has_shared] = is_shared[of_image[has_shared]]
    keeper = np.full(len(values), NOT_DROPPED, np.int64)
    ends = np.cumsum(images)
    for sample in np.unique(owner[has_shared]):
        if skip[sample]:
            continue
        pictures = of_image[ends[sample] - images[sample] : ends[sample]]
        kept_with = [_keeper(each, keeper, neighbours, starts) for each in pictures]
        if NOT_DROPPED in kept_with:
            for picture in pictures:
                if picture >= 0 and keeper[picture] == NOT_DROPPED:
                    keeper[picture] = sample
        else:
            result[sample] = kept_with[-1]
    return result


def _keeper(picture: int, keeper: np.ndarray, neighbours: np.ndarray, starts: np.ndarray) -> int:
    if picture < 0:
        return NOT_DROPPED
    if keeper[picture] != NOT_DROPPED:
        return int(keeper[picture])
    keepers = keeper[neighbours[starts[picture] : starts[picture + 1]]]
    keepers = keepers[keepers != NOT_DROPPED]
    return int(keepers.min()) if len(keepers) else NOT_DROPPED


def _neighbours(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each hash the others within a distance.

    Of four bands of 16 bits one differs in at most a quarter of the bits, so only hashes are
    compared that have a band nearly in common.

    Returns:
        Numbers of the neighbours of all hashes, and where those of each start.
    """
    pairs = [np.zeros((0, 2), np.int64)]
    if bits:
        for band in range(_BANDS):
            keys = ((values >> np.uint64(band * _BAND_BITS)) & np.uint64(0xFFFF)).astype(np.uint16)
            order = np.argsort(keys, kind="stable")
            for left, right in _candidates(keys, order, bits // _BANDS):
                difference = values[left] ^ values[right]
                close = _count_bits(difference) <= bits
                pairs.append(np.stack([left[close], right[close]], axis=1))
    found = np.unique(np.concatenate(pairs), axis=0)
    starts = np.searchsorted(found[:, 0], np.arange(len(values) + 1))
    return found[:, 1], starts


def _candidates(
    keys: np.ndarray, order: np.ndarray, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs of different hashes whose bands differ in at most `radius` bits."""
    ordered = keys[order]
    for mask in _masks(radius):
        wanted = keys ^ mask
        first = np.searchsorted(ordered, wanted, side="left")
        count = np.searchsorted(ordered, wanted, side="right") - first
        for begin, end in _chunks(count):
            counts = count[begin:end]
            left = np.repeat(np.arange(begin, end), counts)
            ramp = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
            right = order[np.repeat(first[begin:end], counts) + ramp]
            different = left != right
            yield left[different], right[different]


def _masks(radius: int) -> list[np.uint16]:
    return [
        np.uint16(sum(1 << bit for bit in chosen))
        for size in range(radius + 1)
        for chosen in itertools.combinations(range(_BAND_BITS), size)
    ]


def _chunks(count: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cuts rows so that about so many pairs are in memory at once."""
    ends = np.cumsum(count)
    begin = 0
    while begin < len(count):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        yield begin, end
        begin = end


def _count_bits(values: np.ndarray) -> np.ndarray:
    as_bytes = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), 8)
    return _BITS_OF_BYTE[as_bytes].sum(axis=1)


_BITS_OF_BYTE: np.ndarray = np.array([value.bit_count() for value in range(256)], np.uint8)


def decide(
    content: np.ndarray, images: np.ndarray, pictures: Sequence[np.ndarray], bits: int | None
) -> Decision:
    """Decides what is dropped.

    Args:
        content: Hash of each sample, [samples, 2].
        images: How many images each has.
        pictures: Hashes of the images and whether each has one.
        bits: As in `find_near`; None compares no pictures.
    """
    exact = find_exact(content)
    near = np.full(len(exact), NOT_DROPPED, np.int64)
    if bits is not None:
        hashes, is_hashed = pictures
        near = find_near(hashes, is_hashed, images, exact != NOT_DROPPED, bits)
    return Decision(exact=exact, near=near)
