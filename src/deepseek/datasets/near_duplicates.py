"""Texts that are almost the same: what leaks from the training data into those of a test.

Papers: Broder 1997, "On the resemblance and containment of documents"; Lee et al. 2021
(deduplicating training data), arXiv 2107.06499. A text is the set of its pieces of 5 bytes,
the likeness of two their Jaccard index. Candidates come from MinHash in 16 bands of 4 numbers: a
pair of likeness 0.8 is missed once in 5,000; each candidate is then compared in full.

Shapes: N texts.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xxhash

PIECE = 5
NUM_BANDS, ROWS = 16, 4
_PRIME = np.uint64((1 << 61) - 1)
_MANY = 50


class Pair(NamedTuple):
    """Two texts by number, the first the lower, and how alike they are, 0..1."""

    first: int
    second: int
    likeness: float


def find_near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[Pair]:
    """Return the pairs of texts that are at least so alike, in order.

    Args:
        texts: N texts; case, spaces and punctuation do not count.
        threshold: Jaccard index of their pieces, 0..1.
    """
    pieces = [_pieces(text) for text in texts]
    coefficients = np.random.default_rng(0).integers(1, 1 << 28, (2, NUM_BANDS * ROWS), np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, own in enumerate(pieces):
        lowest = _signature(own, coefficients)
        for band in range(NUM_BANDS):
            buckets[band, lowest[band * ROWS : (band + 1) * ROWS].tobytes()].append(number)
    candidates = {pair for members in buckets.values() for pair in _pairs(members)}
    found = []
    for first, second in sorted(candidates):
        one, other = pieces[first], pieces[second]
        likeness = len(one & other) / len(one | other)
        if likeness >= threshold:
            found.append(Pair(first, second, likeness))
    return found


def group_pairs(pairs: Iterable[Pair], count: int) -> np.ndarray:
    """Return the group of each of `count` texts, int64 (N,): near-duplicates share one."""
    group = np.arange(count)

    def root(number: int) -> int:
        while group[number] != number:
            group[number] = number = int(group[group[number]])
        return number

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        group[high] = low
    return np.array([root(number) for number in range(count)], np.int64)


def _pieces(text: str) -> frozenset[int]:
    plain = " ".join(re.findall(r"\w+", text.lower())).encode("utf-8", "replace")
    starts = range(max(1, len(plain) - PIECE + 1))
    return frozenset(xxhash.xxh32_intdigest(plain[at : at + PIECE]) for at in starts)


def _signature(pieces: frozenset[int], coefficients: np.ndarray) -> np.ndarray:
    """Return the lowest value of each of 64 hashes, uint64 (64,)."""
    values = np.fromiter(pieces, np.uint64, len(pieces))
    factor, offset = coefficients
    return ((values[:, None] * factor + offset) % _PRIME).min(0)


def _pairs(members: list[int]) -> Iterable[tuple[int, int]]:
    """Return the pairs of a bucket; of a large one, those of neighbours, which link them all."""
    if len(members) > _MANY:
        return pairwise(members)
    return ((a, b) for at, a in enumerate(members) for b in members[at + 1 :])
