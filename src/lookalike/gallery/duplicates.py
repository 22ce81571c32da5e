"""Duplicates in a gallery: identical files, and near-duplicate images (re-encoded, scaled, retouched).

Two images are near-duplicates if their difference hashes differ in few bits and their vectors are nearly parallel;
either criterion alone would match different images. Hashes that differ in at most 5 bits agree in at least one of 6
parts, so only hashes that share a part are compared (a pigeonhole; G. S. Manku et al., "Detecting near-duplicates for
web crawling", WWW 2007, section 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from lookalike.errors import InputError
from lookalike.gallery.store.base import GalleryItem, Snapshot, Store, batches

MAX_BITS = 5  # of 64 that may differ
MIN_COSINE = 0.9  # of the vectors of near-duplicates
HASH_BATCH = 1024  # hashes compared with as many others at a time
PAIR_BATCH = 8192  # pairs whose vectors are in memory at a time
UINT64_MASK = (1 << 64) - 1
PARTS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))  # of a hash: lowest bit, width; MAX_BITS + 1

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class DuplicateGroup:
    """Items that are duplicates of one another, the lowest id first. `exact`: their files have the same bytes."""

    items: list[GalleryItem]
    exact: bool

    @property
    def copy_of(self) -> dict[int, int]:
        """For the id of each item whose file has the same bytes as that of an item with a lower id: that id."""
        firsts: dict[bytes, int] = {}
        ordered = sorted(self.items, key=lambda item: item.id)
        found = {item.id: firsts.setdefault(item.digest, item.id) for item in ordered}
        return {id: first for id, first in found.items() if id != first}


def find_duplicates(store: Store, *, bits: int = MAX_BITS, cosine: float = MIN_COSINE) -> list[DuplicateGroup]:
    """Find all groups of duplicates, as of one moment. A duplicate of a duplicate is in the same group.

    Memory: about 50 bytes per item, and the vectors of 8192 pairs. The time grows with the number of pairs that share a
    part of their hash; images with equal hashes are all compared with one another. An image without any edges has the
    hash 0, like an item that was added without an image; these are duplicates only if their files are identical.

    Args:
        store: of the gallery.
        bits: bits of the 64-bit difference hash that may differ, 0 to 5.
        cosine: lowest cosine of the vectors, -1 to 1.

    Returns:
        Groups of at least two items, ordered by their lowest id.

    Raises:
        InputError: `bits` or `cosine` is out of range, or the store cannot be read.
    """
    if not 0 <= bits <= MAX_BITS:
        raise InputError(f"bits: {bits} is not supported.", f"Allow 0 to {MAX_BITS} bits of the hash to differ.")
    if not -1 <= cosine <= 1:
        raise InputError(f"cosine: {cosine} is not a cosine.", "Give a number from -1 to 1, such as 0.9.")
    with store.snapshot() as snapshot:
        return _find_groups(snapshot, bits, cosine)


def _find_groups(snapshot: Snapshot, bits: int, cosine: float) -> list[DuplicateGroup]:
    ids, hashes, digests = _columns(snapshot)
    groups = DisjointSet()  # of indexes into `ids`; only those that have a duplicate are in it
    is_first = np.ones(len(ids), bool)  # of each set of identical files, one is compared with others
    for copies in _equal(digests):
        _join(groups, copies[:-1], copies[1:])
        is_first[copies[1:]] = False
    firsts = np.flatnonzero(is_first & (hashes != 0))
    for one, other in _similar_hashes(firsts, hashes[firsts], bits):
        apart = np.array(
            [not _connected(groups, *pair) for pair in zip(one.tolist(), other.tolist(), strict=True)], bool
        )
        one, other = one[apart], other[apart]
        near = _cosines(snapshot, ids, one, other) >= cosine
        _join(groups, one[near], other[near])
    return [_as_group(snapshot, ids[members]) for members in sorted(map(sorted, groups.subsets()))]


def _join(groups: Any, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    """Merge the groups of the two members of each pair."""
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        groups.add(a)
        groups.add(b)
        groups.merge(a, b)


def _connected(groups: Any, one: int, other: int) -> bool:
    return one in groups and other in groups and groups.connected(one, other)


def _columns(snapshot: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.void]]:
    """Id, difference hash, and a 16-byte hash of the digest of each item, in ascending order of id."""
    ids, hashes, digests = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, "V16")]
    for items in batches(snapshot.rows(), HASH_BATCH):
        ids.append(np.array([item.id for item in items], np.int64))
        hashes.append(np.array([item.dhash & UINT64_MASK for item in items], np.uint64))
        short = b"".join(hashlib.blake2b(item.digest, digest_size=16).digest() for item in items)
        digests.append(np.frombuffer(short, "V16"))
    return np.concatenate(ids), np.concatenate(hashes), np.concatenate(digests)


def _equal(values: NDArray[np.void]) -> Iterator[NDArray[np.int64]]:
    """The indexes of each value that occurs more than once, in ascending order."""
    comparable = values.view([("high", np.uint64), ("low", np.uint64)])
    order = np.argsort(comparable, kind="stable")
    changes = np.flatnonzero(comparable[order][1:] != comparable[order][:-1]) + 1
    for indexes in np.split(order, changes):
        if len(indexes) > 1:
            yield indexes


def _similar_hashes(items: NDArray[np.int64], hashes: NDArray[np.uint64], bits: int) -> Iterator[Pairs]:
    """Pairs of items, at most `PAIR_BATCH` at a time, whose hashes differ in at most `bits` bits."""
    order = np.argsort(hashes, kind="stable")
    values, starts, sizes = np.unique(hashes[order], return_index=True, return_counts=True)
    for one, other in _similar_values(values, sizes, bits):
        counts = sizes[one] * sizes[other]
        ends = np.cumsum(counts)
        for low in range(0, int(counts.sum()), PAIR_BATCH):
            numbers = np.arange(low, min(low + PAIR_BATCH, int(ends[-1])))
            pair = np.searchsorted(ends, numbers, side="right")
            within = numbers - (ends - counts)[pair]
            across = sizes[other][pair]
            a = starts[one][pair] + within // across
            b = starts[other][pair] + within % across
            once = a < b  # a value paired with itself gives each pair twice
            yield items[order[a[once]]], items[order[b[once]]]


def _similar_values(values: NDArray[np.uint64], sizes: NDArray[np.int64], bits: int) -> Iterator[Pairs]:
    """Pairs of indexes into `values`, ascending and each once: values that several items have, and similar ones."""
    several = np.flatnonzero(sizes > 1)
    yield several, several
    for number, (lowest, width) in enumerate(PARTS if bits else ()):
        order = np.argsort(_part(values, lowest, width), kind="stable")
        keys = _part(values, lowest, width)[order]
        for bucket in np.split(order, np.flatnonzero(keys[1:] != keys[:-1]) + 1):
            for top in range(0, len(bucket), HASH_BATCH):
                for left in range(top, len(bucket), HASH_BATCH):
                    one, other = bucket[top : top + HASH_BATCH], bucket[left : left + HASH_BATCH]
                    agreement = _signs(values[one]) @ _signs(values[other]).T  # 64 - 2 × bits that differ, exactly
                    rows, columns = np.nonzero(agreement >= 64 - 2 * bits)
                    a, b = one[rows], other[columns]
                    differ = values[a] ^ values[b]
                    new = a < b
                    for earlier in PARTS[:number]:  # pairs that agree in an earlier part were found there
                        new &= _part(differ, *earlier) != 0
                    yield a[new], b[new]


def _part(hashes: NDArray[np.uint64], lowest: int, width: int) -> NDArray[np.uint64]:
    """Some bits of each hash, as a number."""
    return (hashes >> np.uint64(lowest)) & np.uint64((1 << width) - 1)


def _signs(hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
    """The bits of each hash as -1 and 1, (N, 64)."""
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8), axis=1)
    return bits.astype(np.float32) * 2 - 1


def _cosines(
    snapshot: Snapshot, ids: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The cosines of the vectors of pairs of items, (P,)."""
    wanted, places = np.unique(np.concatenate([one, other]), return_inverse=True)
    vectors = snapshot.vectors(ids[wanted].tolist())
    cosines: NDArray[np.float32] = np.einsum("nd,nd->n", vectors[places[: len(one)]], vectors[places[len(one) :]])
    return cosines


def _as_group(snapshot: Snapshot, ids: NDArray[np.int64]) -> DuplicateGroup:
    items = [item for item in snapshot.get(ids.tolist()) if item is not None]
    return DuplicateGroup(items, exact=len({item.digest for item in items}) == 1)
