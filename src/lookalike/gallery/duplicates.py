"""Copies in a gallery: the same file twice, and pictures that are nearly the same (re-encoded, scaled, retouched).

Two pictures are near copies if their difference hashes differ in few bits and their vectors are nearly parallel; either
alone would call different pictures the same. Hashes within 5 bits agree wholly in at least one of 6 parts of them, so
only those that share a part are compared (a pigeonhole; G. S. Manku et al., "Detecting near-duplicates for web
crawling", WWW 2007, section 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import GalleryItem, Snapshot, Store, batches

BITS = 5  # of 64 that may differ
COSINE = 0.9  # of the vectors of near copies, at least
TILE = 1024  # hashes compared with as many others at a time
PAIRS = 8192  # pairs whose vectors are in memory at a time
ALL = (1 << 64) - 1
PARTS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))  # of a hash: lowest bit, bits; one more than BITS

Cosines = NDArray[np.float32]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Group:
    """Pictures that are copies of one another, the lowest id first. `exact`: their files are the same byte for byte."""

    rows: list[GalleryItem]
    exact: bool

    @property
    def copy_of(self) -> dict[int, int]:
        """Of each row whose file is the same byte for byte as that of a row with a lower id, that id; by its own id."""
        firsts: dict[bytes, int] = {}
        found = {row.id: firsts.setdefault(row.digest, row.id) for row in sorted(self.rows, key=lambda row: row.id)}
        return {id: first for id, first in found.items() if id != first}


def find_duplicates(store: Store, *, bits: int = BITS, cosine: float = COSINE) -> list[Group]:
    """All groups of copies as of one moment; who is a copy of a copy is in the group, too.

    Memory: some 100 bytes a row, and the vectors of 8192 pairs. Time grows with the pairs that share a part of their
    hash; of many pictures with one and the same hash, all are compared with one another. A picture without any edge has
    the hash 0, as has a row that came without a picture; those count as copies only if their files are the same.

    Args:
        store: the gallery's.
        bits: of the 64 of the difference hash that may differ, 0 to 5.
        cosine: of the vectors, at least, -1..1.

    Returns:
        Groups of two rows or more, by their lowest id.

    Raises:
        InputError: limits out of range, or a store that cannot be read.
    """
    if not 0 <= bits <= BITS:
        raise InputError(f"{bits} bits cannot be searched for.", f"Allow 0 to {BITS} bits of the hash to differ.")
    if not -1 <= cosine <= 1:
        raise InputError(f"{cosine} is no cosine.", "Give a number from -1 to 1, such as 0.9.")
    with store.snapshot() as kept:
        return _groups(kept, bits, cosine)


def _groups(kept: Snapshot, bits: int, cosine: float) -> list[Group]:
    ids, looks, digests = _columns(kept)
    groups = Chains(len(ids))
    for rows in _equal(digests):
        groups.join(rows[:-1], rows[1:])
    firsts = np.flatnonzero(
        (groups.parent == np.arange(len(ids))) & (looks != 0)
    )  # one of each set of equal files: they look equal
    for one, other in _alike(firsts, looks[firsts], bits):
        apart = groups.roots(one) != groups.roots(other)
        one, other = one[apart], other[apart]
        near = _cosines(kept, ids, one, other) >= cosine
        groups.join(one[near], other[near])
    return list(_as_groups(kept, ids, groups))


class Chains:
    """Which of `count` rows hang together, by pairs that do."""

    def __init__(self, count: int) -> None:
        self.parent = np.arange(count)

    def root(self, row: int) -> int:
        """The lowest row of the row's chain."""
        parent = self.parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    def roots(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The lowest row of the chain of each, of the shape of `rows`."""
        found = self.parent[rows]
        while (higher := self.parent[found] != found).any():
            found[higher] = self.parent[found[higher]]
        return found

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Make one chain of the two rows of each pair."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            self.parent[high] = low


def _columns(kept: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.void]]:
    """Id, hash and 16 bytes that stand for the digest of each row, in ascending order of id."""
    ids, looks, digests = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, "V16")]
    for rows in batches(kept.rows(), TILE):
        ids.append(np.array([row.id for row in rows], np.int64))
        looks.append(np.array([row.dhash & ALL for row in rows], np.uint64))
        short = b"".join(hashlib.blake2b(row.digest, digest_size=16).digest() for row in rows)
        digests.append(np.frombuffer(short, "V16"))
    return np.concatenate(ids), np.concatenate(looks), np.concatenate(digests)


def _equal(values: NDArray[np.generic]) -> Iterator[NDArray[np.int64]]:
    """The places of each value that is there more than once, in ascending order."""
    if values.dtype.kind == "V":
        values = values.view([("high", np.uint64), ("low", np.uint64)])
    order = np.argsort(values, kind="stable")
    changes = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    for places in np.split(order, changes):
        if len(places) > 1:
            yield places


def _alike(rows: NDArray[np.int64], looks: NDArray[np.uint64], bits: int) -> Iterator[Pairs]:
    """Pairs of rows, at most `PAIRS` at a time, whose hashes differ in at most `bits` bits."""
    order = np.argsort(looks, kind="stable")
    kinds, starts, sizes = np.unique(looks[order], return_index=True, return_counts=True)
    for one, other in _alike_kinds(kinds, sizes, bits):
        counts = sizes[one] * sizes[other]
        ends = np.cumsum(counts)
        for low in range(0, int(counts.sum()), PAIRS):
            places = np.arange(low, min(low + PAIRS, int(ends[-1])))
            pair = np.searchsorted(ends, places, side="right")
            within = places - (ends - counts)[pair]
            across = sizes[other][pair]
            a = starts[one][pair] + within // across
            b = starts[other][pair] + within % across
            once = a < b  # a hash with itself gives each pair twice
            yield rows[order[a[once]]], rows[order[b[once]]]


def _alike_kinds(kinds: NDArray[np.uint64], sizes: NDArray[np.int64], bits: int) -> Iterator[Pairs]:
    """Pairs of places in `kinds`, ascending and each once: hashes that several rows have, and those that are near."""
    several = np.flatnonzero(sizes > 1)
    yield several, several
    for number, (lowest, width) in enumerate(PARTS if bits else ()):
        order = np.argsort(_part(kinds, lowest, width), kind="stable")
        keys = _part(kinds, lowest, width)[order]
        for bucket in np.split(order, np.flatnonzero(keys[1:] != keys[:-1]) + 1):
            for top in range(0, len(bucket), TILE):
                for left in range(top, len(bucket), TILE):
                    one, other = bucket[top : top + TILE], bucket[left : left + TILE]
                    agreement = _signs(kinds[one]) @ _signs(kinds[other]).T  # 64 - 2 × bits that differ, exactly
                    rows, columns = np.nonzero(agreement >= 64 - 2 * bits)
                    a, b = one[rows], other[columns]
                    differ = kinds[a] ^ kinds[b]
                    new = a < b
                    for earlier in PARTS[:number]:  # those were found in that part already
                        new &= _part(differ, *earlier) != 0
                    yield a[new], b[new]


def _part(hashes: NDArray[np.uint64], lowest: int, width: int) -> NDArray[np.uint64]:
    """Some bits of each hash, as a number."""
    return (hashes >> np.uint64(lowest)) & np.uint64((1 << width) - 1)


def _signs(hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
    """(N, 64) of -1 and 1: the bits of each hash."""
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8), axis=1)
    return bits.astype(np.float32) * 2 - 1


def _cosines(kept: Snapshot, ids: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> Cosines:
    """Of the vectors of pairs of rows, (P,) float32."""
    wanted, places = np.unique(np.concatenate([one, other]), return_inverse=True)
    vectors = kept.vectors(ids[wanted].tolist())
    cosines: Cosines = np.einsum("nd,nd->n", vectors[places[: len(one)]], vectors[places[len(one) :]])
    return cosines


def _as_groups(kept: Snapshot, ids: NDArray[np.int64], groups: Chains) -> Iterator[Group]:
    roots = groups.roots(np.arange(len(ids)))
    for places in _equal(roots):
        rows = [row for row in kept.get(ids[places].tolist()) if row is not None]
        yield Group(rows, exact=len({row.digest for row in rows}) == 1)
