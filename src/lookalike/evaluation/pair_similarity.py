"""Cosine similarities of same-class and different-class pairs of images, and thresholds on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PAIRS = 500_000  # same-class pairs, and as many different-class pairs
CHUNK = 16_384  # pairs computed at a time
MIN_FALSE_MATCHES = 10  # a threshold estimated from fewer is not meaningful
FALSE_MATCH_RATE = 0.01  # default of a model's match threshold

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class PairSimilarities:
    """Cosines of pairs of images.

    Args:
        same: (P,) float32, cosines of same-class pairs.
        different: (Q,) float32, cosines of different-class pairs.
        all_same: number of all same-class pairs; if it is above P, `same` is a sample.
        all_different: number of all different-class pairs; if it is above Q, `different` is a sample.
    """

    same: NDArray[np.float32]
    different: NDArray[np.float32]
    all_same: int
    all_different: int


@dataclass(frozen=True)
class Threshold:
    """A cosine above which a pair is accepted as one class.

    It accepts at most a share `rate` of the different-class pairs and a share `found` of the same-class pairs, 0..1.
    """

    rate: float
    cosine: float
    found: float


def similarities(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], *, most: int = MAX_PAIRS, seed: int = 0
) -> PairSimilarities:
    """Compute the cosines of all same-class and different-class pairs, or of a uniform sample of each.

    Args:
        vectors: (N, D) float32 of unit length.
        labels: (N,) int64.
        most: maximum number of pairs of each kind; above it, `most` pairs are sampled with replacement.
        seed: seed of the sampling.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    count = len(labels)
    all_same = int((sizes * (sizes - 1) // 2).sum())
    all_different = count * (count - 1) // 2 - all_same
    generator = np.random.default_rng(seed)
    same = _every_same(starts, sizes) if all_same <= most else _some_same(starts, sizes, most, generator)
    if all_different <= most:
        different = _every_different(starts, sizes)
    else:
        different = _some_different(starts, sizes, most, generator)
    one, other = (_cosines(vectors, order[left], order[right]) for left, right in (same, different))
    return PairSimilarities(one, other, all_same, all_different)


def threshold(pairs: PairSimilarities, rate: float) -> Threshold | None:
    """Return the lowest cosine that at most `rate` of the different-class pairs exceed, or None for too few pairs.

    >>> pairs = PairSimilarities(np.float32([0.95, 0.2]), np.arange(100, dtype=np.float32) / 100, 2, 100)
    >>> at = threshold(pairs, 0.1)
    >>> round(at.cosine, 2), at.found
    (0.89, 0.5)
    """
    allowed = int(rate * len(pairs.different) + 1e-9)
    if allowed < MIN_FALSE_MATCHES or not len(pairs.same):
        return None
    place = len(pairs.different) - 1 - allowed
    cosine = np.partition(pairs.different, place)[place]
    return Threshold(rate, float(cosine), float((pairs.same > cosine).mean()))


def match_threshold(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], rate: float = FALSE_MATCH_RATE
) -> float | None:
    """Compute a model's `match_threshold`: the lowest cosine that at most `rate` of the different-class pairs reach.

    Args:
        vectors: (N, D) float32 of unit length.
        labels: (N,) int64.
        rate: false match rate, 0..1.

    Returns:
        Cosine, -1..1; None if there are too few pairs.
    """
    found = threshold(similarities(vectors, labels), rate)
    return None if found is None else min(float(np.nextafter(np.float32(found.cosine), np.float32(2))), 1.0)


def _every_same(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Pairs:
    """Return all same-class pairs, as indices into the images sorted by class."""
    parts = [np.add(np.triu_indices(size, 1), start) for start, size in zip(starts, sizes, strict=True)]
    one, other = np.concatenate(parts, 1)
    return one, other


def _every_different(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Pairs:
    """Return all different-class pairs: each index paired with all indices after its class."""
    count = int(sizes.sum())
    ends = np.repeat(starts + sizes, sizes)
    one = np.repeat(np.arange(count), count - ends)
    first = np.cumsum(count - ends) - (count - ends)
    return one, np.arange(len(one)) - np.repeat(first - ends, count - ends)


def _some_same(starts: NDArray[np.int64], sizes: NDArray[np.int64], most: int, generator: np.random.Generator) -> Pairs:
    weights = sizes * (sizes - 1)
    which = generator.choice(len(sizes), most, p=weights / weights.sum())
    one = generator.integers(0, sizes[which])
    other = generator.integers(0, sizes[which] - 1)
    other += other >= one  # never the same image
    return starts[which] + one, starts[which] + other


def _some_different(
    starts: NDArray[np.int64], sizes: NDArray[np.int64], most: int, generator: np.random.Generator
) -> Pairs:
    count = int(sizes.sum())
    weights = sizes * (count - sizes)
    which = generator.choice(len(sizes), most, p=weights / weights.sum())
    one = starts[which] + generator.integers(0, sizes[which])
    other = generator.integers(0, count - sizes[which])
    other += np.where(other >= starts[which], sizes[which], 0)  # never of the same class
    return one, other


def _cosines(vectors: NDArray[np.float32], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute the cosines of pairs of rows, (P,) float32."""
    cosines = np.empty(len(one), np.float32)
    for low in range(0, len(one), CHUNK):
        part = slice(low, low + CHUNK)
        np.einsum("nd,nd->n", vectors[one[part]], vectors[other[part]], out=cosines[part])
    return cosines
