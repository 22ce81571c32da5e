"""The search for neighbours equals sorting all cosines, ties, exclusions, small tiles and all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.evaluation import knn
from lookalike.evaluation.knn import nearest, unit_vectors


def exact_vectors(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Entries of ±1 and a dimension that is a square of a power of two: all cosines are exact, and many are equal."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], (count, dim)).astype(np.float32)


def by_sorting(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], k: int, banned: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Row by row: all cosines in double precision, sorted, the equal ones by index; -1 where none is left."""
    found = np.full((len(queries), min(k, len(gallery))), -1)
    for row, query in enumerate(queries.astype(np.float64)):
        cosines = [float(query @ g) / np.linalg.norm(query) / np.linalg.norm(g) for g in gallery.astype(np.float64)]
        order = sorted((i for i in range(len(gallery)) if not banned[row, i]), key=lambda i: (-cosines[i], i))
        found[row, : len(order[:k])] = order[:k]
    return found


@pytest.fixture(params=["pairs once", "a few rows at a time"])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(knn, "TILE", 64)
    monkeypatch.setattr(knn, "SLICE", 16)
    if request.param != "pairs once":
        monkeypatch.setattr(knn, "LISTS", 0)
        monkeypatch.setattr(knn, "ENTRIES", 90)
    return


def indexes_of(*args: object, **options: object) -> NDArray[np.int64]:
    parts = list(nearest(*args, **options))  # type: ignore[arg-type]
    assert [part.first for part in parts] == np.cumsum([0, *[len(part.indexes) for part in parts[:-1]]]).tolist()
    return np.concatenate([part.indexes for part in parts])


@pytest.mark.parametrize("k", [1, 5, 40, 300])
@pytest.mark.usefixtures("small_tiles")
def test_it_equals_sorting(k: int) -> None:
    vectors = exact_vectors(230, 16, seed=k)
    vectors[100:110] = vectors[3]
    expected = by_sorting(vectors, vectors, k, np.eye(230, dtype=bool))
    assert np.array_equal(indexes_of(vectors, k), expected)


@pytest.mark.usefixtures("small_tiles")
def test_a_gallery_and_groups() -> None:
    queries, gallery = exact_vectors(90, 4, seed=1), exact_vectors(150, 4, seed=2)
    own, theirs = np.arange(90) % 7, np.arange(150) % 11
    same = own[:, None] == theirs
    found = indexes_of(queries, 9, gallery=gallery, groups=own, gallery_groups=theirs)
    assert np.array_equal(found, by_sorting(queries, gallery, 9, same))
    among = indexes_of(gallery, 9, groups=theirs)
    assert np.array_equal(among, by_sorting(gallery, gallery, 9, theirs[:, None] == theirs))


@pytest.mark.usefixtures("small_tiles")
def test_vectors_that_are_all_the_same_come_in_order() -> None:
    found = indexes_of(np.ones((200, 4), np.float32), 3)
    assert found[0].tolist() == [1, 2, 3]
    assert found[1].tolist() == [0, 2, 3]
    assert (found[3:] == [0, 1, 2]).all()


@pytest.mark.usefixtures("small_tiles")
def test_cosines_of_any_sign_are_right_and_descend() -> None:
    vectors = np.random.default_rng(0).normal(size=(150, 6))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.concatenate([part.cosines for part in nearest(vectors, 149)])
    expected = np.sort(units @ units.T - 9 * np.eye(150), axis=1)[:, :0:-1]
    assert cosines == pytest.approx(expected, abs=1e-6)


def test_a_zero_of_either_sign_is_the_same_zero() -> None:
    vectors = np.array([[1.0, 0.0], [-0.0, 1.0], [0.0, -1.0], [-0.0, -1.0]])
    assert indexes_of(vectors, 3)[0].tolist() == [1, 2, 3]


def test_what_is_missing_is_minus_one() -> None:
    part = next(iter(nearest(np.eye(3), 5, groups=[0, 0, 1])))
    assert part.indexes.tolist() == [[2, -1, -1], [2, -1, -1], [0, 1, -1]]
    assert np.isneginf(part.cosines).tolist() == (part.indexes == -1).tolist()


@given(st.lists(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_unit_vectors_have_length_one_or_are_refused(rows: list[list[float]]) -> None:
    if all(any(row) for row in rows):
        assert np.linalg.norm(unit_vectors(rows), axis=1) == pytest.approx(1, abs=1e-5)
    else:
        with pytest.raises(InputError, match="all zeros"):
            unit_vectors(rows)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ([[1.0, float("nan")], [0.0, 1.0]], "row 0 is not all finite"),
        ([[1.0, 0.0], [0.0, float("-inf")]], "row 1 is not all finite"),
        ([[1e300, 0.0]], "row 0 is not all finite"),
        ([1.0, 2.0], r"shape \(2,\)"),
        (np.empty((0, 4)), r"shape \(0, 4\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(vectors: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        unit_vectors(vectors)  # type: ignore[arg-type]


def test_a_gallery_must_fit() -> None:
    with pytest.raises(InputError, match="3 dimensions and the embeddings have 2"):
        next(iter(nearest(np.eye(2), 1, gallery=np.eye(3))))
    with pytest.raises(InputError, match="one side only"):
        next(iter(nearest(np.eye(2), 1, gallery=np.eye(2), groups=[0, 1])))
    with pytest.raises(InputError, match="do not fit"):
        next(iter(nearest(np.eye(2), 1, groups=[0, 1, 2])))
