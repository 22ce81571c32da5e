"""Copies in a gallery: the bucketed search against one that compares all pairs."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery import duplicates
from lookalike.gallery.duplicates import find_duplicates
from lookalike.gallery.store.base import GalleryInfo, NewItem
from lookalike.gallery.store.sqlite import SqliteStore
from small_gallery import rows

DIM = 16
ABOUT = GalleryInfo("f" * 64, DIM)


def copies(count: int, *, seed: int = 0) -> list[NewItem]:
    """Rows in families: hashes some bits apart, vectors some way apart, files now and then the same."""
    rng = np.random.default_rng(seed)
    made: list[NewItem] = []
    for row in rows(count, DIM, seed=seed):
        if made and rng.random() < 0.6:
            model = made[int(rng.integers(len(made)))]
            if rng.random() < 0.2:
                row = replace(row, dhash=model.dhash, vector=model.vector, digest=model.digest)
            else:
                look = model.dhash
                for bit in rng.choice(64, int(rng.integers(0, 8)), replace=False).tolist():
                    look ^= 1 << bit
                vector = model.vector + rng.normal(0, 0.12, DIM).astype(np.float32) * rng.choice([0, 1, 2])
                row = replace(row, dhash=look, vector=vector / np.linalg.norm(vector))
        made.append(row)
    return made


def store_of(path: Path, made: list[NewItem]) -> SqliteStore:
    store = SqliteStore.create(path, ABOUT)
    store.add(made)
    return store


def slow_groups(store: SqliteStore, bits: int, cosine: float) -> set[frozenset[int]]:
    """Every pair, one after the other."""
    kept = list(store.rows())
    vectors = dict(zip([row.id for row in kept], store.vectors([row.id for row in kept]), strict=True))
    group = {row.id: {row.id} for row in kept}
    for one, other in combinations(kept, 2):
        looks = one.dhash % 2**64, other.dhash % 2**64
        near = all(looks) and (looks[0] ^ looks[1]).bit_count() <= bits
        if one.digest == other.digest or (near and vectors[one.id] @ vectors[other.id] >= cosine):
            joined = group[one.id] | group[other.id]
            for id in joined:
                group[id] = joined
    return {frozenset(ids) for ids in group.values() if len(ids) > 1}


@pytest.mark.parametrize("bits", [0, 2, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_groups_are_those_of_all_pairs(bits: int, seed: int, tmp_path: Path) -> None:
    with store_of(tmp_path / "g", copies(120, seed=seed)) as store:
        found = find_duplicates(store, bits=bits, cosine=0.9)
        expected = slow_groups(store, bits, 0.9)
    assert len(expected) > 5
    assert {frozenset(row.id for row in group.items) for group in found} == expected
    lowest = [group.items[0].id for group in found]
    assert lowest == sorted(lowest)
    for group in found:
        assert [row.id for row in group.items] == sorted(row.id for row in group.items)
        assert group.exact is (len({row.digest for row in group.items}) == 1)


def test_small_pieces_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with store_of(tmp_path / "g", copies(120, seed=3)) as store:
        whole = find_duplicates(store)
        monkeypatch.setattr(duplicates, "HASH_BATCH", 3)
        monkeypatch.setattr(duplicates, "PAIR_BATCH", 2)
        assert find_duplicates(store) == whole
    assert whole


def test_both_hash_and_vector_must_agree(tmp_path: Path) -> None:
    one, other, third = rows(3, DIM)
    made = [
        one,
        replace(other, dhash=one.dhash),  # alike in the hash alone
        replace(third, vector=one.vector),  # alike in the vector alone
    ]
    with store_of(tmp_path / "g", made) as store:
        assert find_duplicates(store) == []
        assert len(find_duplicates(store, cosine=-1)) == 1


def test_rows_without_an_edge_are_copies_only_where_their_files_are(tmp_path: Path) -> None:
    one, *others = rows(5, DIM)
    made = [replace(row, dhash=0, vector=one.vector) for row in (one, *others)]
    made[3] = replace(made[3], digest=made[1].digest)
    with store_of(tmp_path / "g", made) as store:
        (group,) = find_duplicates(store)
    assert group.exact
    assert [row.path for row in group.items] == [made[1].path, made[3].path]


def test_a_hash_with_its_highest_bit_is_as_good_as_any(tmp_path: Path) -> None:
    one, other, *_ = rows(2, DIM)
    made = [replace(one, dhash=(1 << 63) | 1), replace(other, dhash=(1 << 63) | 3, vector=one.vector)]
    with store_of(tmp_path / "g", made) as store:
        assert len(find_duplicates(store)) == 1


def test_rows_replaced_meanwhile_are_grouped_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with store_of(tmp_path / "g", copies(60, seed=5)) as store:
        whole = find_duplicates(store)
        join = duplicates._join

        def removing(groups: object, *pairs: NDArray[np.int64]) -> None:
            store.remove([row.id for row in store.rows()])
            join(groups, *pairs)

        monkeypatch.setattr(duplicates, "_join", removing)
        assert find_duplicates(store) == whole
        assert len(store) == 0
    assert whole


def test_an_empty_gallery_has_none(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", ABOUT) as store:
        assert find_duplicates(store) == []
        store.add(rows(1, DIM))
        assert find_duplicates(store) == []


@pytest.mark.parametrize(("limits", "words"), [({"bits": 6}, "6"), ({"bits": -1}, "-1"), ({"cosine": 2}, "2")])
def test_limits_out_of_range_are_refused(limits: dict[str, float], words: str, tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", ABOUT) as store, pytest.raises(InputError, match=words):
        find_duplicates(store, **limits)  # type: ignore[arg-type]


def near_pairs(looks: NDArray[np.uint64], bits: int) -> set[tuple[int, int]]:
    found = [
        pair
        for some in duplicates._similar_hashes(np.arange(len(looks)), looks, bits)
        for pair in zip(*some, strict=True)
    ]
    as_set = {tuple(sorted(map(int, pair))) for pair in found}
    assert len(as_set) == len(found)  # each once
    return as_set  # type: ignore[return-value]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 63), max_size=7, unique=True), st.integers(0, 2**64 - 1), st.integers(0, 5))
def test_no_pair_within_the_bits_is_missed_wherever_they_differ(places: list[int], look: int, bits: int) -> None:
    other = look
    for place in places:
        other ^= 1 << place
    expected = {(0, 1)} if len(places) <= bits else set()
    assert near_pairs(np.array([look, other], np.uint64), bits) == expected


def test_pairs_of_many_hashes_are_all_found_once() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 1 << 64, 20, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 5), replace=False)) for _ in range(300)]
    looks = centres[rng.integers(20, size=300)] ^ np.array(flips, np.uint64)
    expected = {(a, b) for a, b in combinations(range(300), 2) if (int(looks[a]) ^ int(looks[b])).bit_count() <= 5}
    assert len(expected) > 500
    assert near_pairs(looks, 5) == expected
