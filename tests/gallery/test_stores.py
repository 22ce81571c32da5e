"""The interface `Store` of `lookalike.gallery.store.base`, tested with both stores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import ABOUT, DIM, Database, Folder, Place, new_row, new_rows, units

from lookalike.errors import InputError
from lookalike.gallery.store import common
from lookalike.gallery.store.base import (
    AnyValue,
    FailedFile,
    Filter,
    GalleryInfo,
    GalleryItem,
    Hit,
    NewItem,
    ReplacedError,
    Store,
)

CLOSE = 1e-6  # scores are float32 of cosines


def ids_of(found: Iterable[Any]) -> list[int]:
    return [hit.id for hit in found]


def paths(store: Store, filter: Filter) -> list[str]:
    """Paths that pass a filter, in which `rows`, `count` and both searches agree."""
    named = [row.path for row in store.rows(filter=filter)]
    assert store.count(filter) == len(named)
    for exact in (True, False):
        (found,) = store.search(units(1, seed=9), 1000, filter=filter, exact=exact)
        assert sorted(hit.path for hit in found.hits) == sorted(named)
    return named


def slow_search(
    vectors: Mapping[int, NDArray[np.float32]], query: NDArray[np.float32], k: int
) -> list[tuple[int, float]]:
    """Ids and cosines of the nearest of kept vectors; of equal ones the lower id."""
    length = np.linalg.norm(query)
    scores = {id: float(vector @ query / length / np.linalg.norm(vector)) for id, vector in vectors.items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


# What is kept comes back


def test_a_new_store_is_empty(store: Store) -> None:
    assert (len(store), store.count(), list(store.rows()), store.rejected()) == (0, 0, [], [])
    for exact in (True, False):
        assert [found.hits for found in store.search(units(2), 5, exact=exact)] == [[], []]
    assert (store.get([1]), store.thumbnail(1), store.remove([1, 2]), store.update([1], "cat")) == ([None], None, 0, 0)
    assert (store.by_path(["a"]), store.by_digest([b"a"])) == ({}, {})
    assert (store.check(), store.measure_recall(), store.facts()["rows"]) == ([], 1.0, 0)
    assert store.add([]) == []
    assert store.vectors([]).shape == (0, DIM)


def test_about_is_what_it_was_made_with(place: Place) -> None:
    about = GalleryInfo("cd" * 32, 3, "owner/näme", 224, 0.123456789012345)
    with place.create(about) as store:
        assert store.about == about
    with place.open() as store:
        assert store.about == about


def test_about_may_know_no_threshold(place: Place) -> None:
    with place.create(replace(ABOUT, threshold=None)), place.open() as reader:
        assert reader.about.threshold is None


def test_everything_of_a_row_is_kept(place: Place) -> None:
    row = NewItem(
        path="pictures/Küche 'a' \"b\" %s.jpg",
        digest=bytes(range(32)),
        vector=units(1)[0],
        size=1 << 40,
        modified=1_700_000_000_123_456_789,
        label="Spaß",
        metadata={
            "year": 2012,
            "good": True,
            "note": "é \n '\"\\",
            "share": 0.1,
            "whole": 2.0,
            "huge": 1e300,
            "no": None,
        },
        thumbnail=bytes(range(256)),
        dhash=(1 << 64) - 1,
    )
    with place.create() as store:
        (id,) = store.add([row])
    with place.open() as store:
        kept = GalleryItem(id, row.path, row.digest, row.size, row.modified, row.label, dict(row.metadata), row.dhash)
        assert store.get([id]) == [kept]
        assert {key: type(value) for key, value in kept.metadata.items()} == {
            key: type(value)
            for key, value in store.get([id])[0].metadata.items()  # type: ignore[union-attr]
        }
        assert store.thumbnail(id) == row.thumbnail
        assert store.by_path([row.path]) == {row.path: kept}
        assert store.by_digest([row.digest]) == {row.digest: kept}
        assert list(store.rows()) == [kept]
        (hit,) = store.search(units(1), 1)[0]
        assert hit == Hit.of(kept, hit.score)


def test_a_row_may_be_bare(store: Store) -> None:
    (id,) = store.add([NewItem("a", b"d", units(1)[0], metadata=MappingProxyType({}))])
    assert store.get([id]) == [GalleryItem(id, "a", b"d", 0, 0, None, {}, 0)]
    assert store.thumbnail(id) is None


def test_vectors_are_kept_as_float16(store: Store) -> None:
    vectors = units(20)
    ids = store.add(new_rows(vectors))
    kept = store.vectors(ids)
    assert kept.dtype == np.float32
    assert (kept == kept.astype(np.float16)).all()
    assert (np.abs(kept - vectors) <= 2**-11).all()
    assert (store.vectors([ids[7], ids[3], ids[7]]) == kept[[7, 3, 7]]).all()


def test_vectors_of_an_id_that_is_not_there(store: Store) -> None:
    (id,) = store.add(new_rows(units(1)))
    with pytest.raises(InputError, match=f" {id + 1}\\b"):
        store.vectors([id, id + 1])


def test_get_keeps_the_order_that_was_asked_for(store: Store) -> None:
    ids = store.add(new_rows(units(4)))
    asked = [ids[2], 10_000, ids[0], ids[2], -1]
    assert [row and row.id for row in store.get(asked)] == [ids[2], None, ids[0], ids[2], None]


def test_numbers_of_numpy_are_ids_too(store: Store) -> None:
    ids = np.array(store.add(new_rows(units(3))))
    assert [row.id for row in store.get(ids) if row] == ids.tolist()  # type: ignore[arg-type]
    assert len(store.vectors(ids)) == 3  # type: ignore[arg-type]
    assert store.update(ids[:2], "cat") == 2  # type: ignore[arg-type]
    assert store.remove(ids[1:]) == 2  # type: ignore[arg-type]


def test_more_rows_than_a_statement_takes(store: Store) -> None:
    ids = store.add(new_rows(units(600)))
    assert len(set(ids)) == len(store) == 600
    assert len(store.by_path([f"{i:05d}.jpg" for i in range(600)])) == 600
    assert [row.id for row in store.rows()] == ids
    assert [row.id for row in store.get(ids) if row] == ids
    assert store.remove(ids) == 600


# Ids and paths


def test_ids_ascend_and_are_never_used_again(place: Place) -> None:
    seen: list[int] = []
    for _ in range(3):  # the greatest is removed, the store is closed, all are removed
        with place.open(write=True) if seen else place.create() as store:
            ids = store.add(new_rows(units(3)))
            assert ids == sorted(set(ids))
            assert ids[0] > max(seen, default=0)
            assert store.remove(ids[-1:]) == 1
            again = store.add(new_rows(units(1), start=7))
            assert again[0] > ids[-1]
            assert store.remove([*ids, *again]) == 3
            store.compact()
            seen += ids + again


def test_a_path_that_is_there_is_replaced(store: Store) -> None:
    a, b = units(2)
    first, other = store.add([new_row("a", a, label="old", metadata={"x": 1}, thumbnail=b"t"), new_row("b", b)])
    (second,) = store.add([new_row("a", b, digest=b"new", label=None)])
    assert second > other
    assert len(store) == 2
    assert store.get([first]) == [None]
    assert (store.thumbnail(first), store.thumbnail(second)) == (None, None)
    assert store.by_path(["a"])["a"] == GalleryItem(second, "a", b"new", 0, 0, None, {}, 0)
    assert store.count({"label": "old"}) == store.count({"x": 1}) == 0
    assert first not in ids_of(store.search(a[None], 10)[0].hits)


def test_a_path_twice_in_one_add(store: Store) -> None:
    a, b, c = units(3)
    ids = store.add([new_row("a", a, label="first"), new_row("b", b), new_row("a", c, label="last")])
    assert ids[0] == ids[2] != ids[1]
    assert len(store) == 2
    assert store.by_path(["a"])["a"].label == "last"
    assert np.abs(store.vectors(ids[:1])[0] - c).max() < 1e-3


def test_by_digest_names_the_lowest_id(store: Store) -> None:
    ids = store.add([new_row(path, vector, digest=b"same") for path, vector in zip("cab", units(3), strict=True)])
    assert store.by_digest([b"same", b"same", b"none"])[b"same"].id == min(ids)
    store.remove([min(ids)])
    assert store.by_digest([b"same"])[b"same"].id == sorted(ids)[1]


def test_rows_after(store: Store) -> None:
    ids = store.add(new_rows(units(5)))
    store.remove([ids[3]])
    assert [row.id for row in store.rows(after=ids[1])] == [ids[2], ids[4]]
    assert list(store.rows(after=ids[4])) == []
    assert [row.id for row in store.rows(after=ids[0], filter={"path": ["00000.jpg", "00002.jpg"]})] == [ids[2]]


def test_rows_may_be_left_in_the_middle_and_the_store_be_used_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{type(store).__module__}_rows.PAGE", 50)
    ids = store.add(new_rows(units(120)))
    some = store.rows()
    assert [next(some).id, next(some).id] == ids[:2]
    store.add(new_rows(units(3), start=5000))
    assert store.remove(ids[:1]) == 1
    assert len(store) == 122
    del some
    assert len(list(store.rows())) == 122


# All or none


@pytest.mark.parametrize(
    "vector",
    [
        units(1, DIM + 1)[0],
        units(1, DIM)[:, :4][0],
        units(1),
        units(1)[0] * np.float32(1.01),
        np.zeros(DIM, np.float32),
        np.full(DIM, np.nan, np.float32),
        np.full(DIM, np.inf, np.float32),
    ],
)
def test_a_wrong_vector_is_refused_and_nothing_is_kept(store: Store, vector: NDArray[np.float32]) -> None:
    (before,) = store.add([new_row("b", units(1)[0], label="kept")])
    with np.errstate(all="ignore"), pytest.raises(InputError, match=r"wrong.jpg") as caught:
        store.add([new_row("a", units(1)[0]), new_row("b", units(2)[1]), new_row("wrong.jpg", vector)])
    assert caught.value.remedy
    assert [row.id for row in store.rows()] == [before]
    assert store.by_path(["b"])["b"].label == "kept"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], {"a": 1}])
def test_a_wrong_value_is_refused_and_nothing_is_kept(store: Store, value: Any) -> None:
    a, b, c = units(3)
    (id,) = store.add([new_row("b", b, metadata={"x": 1})])
    with pytest.raises(InputError):
        store.add([new_row("a", a), new_row("b", b), new_row("c", c, metadata={"x": value})])
    with pytest.raises(InputError):
        store.update([id], metadata={"x": value})
    assert [(row.id, row.metadata) for row in store.rows()] == [(id, {"x": 1})]


def test_a_path_that_is_no_text_is_refused_and_nothing_is_kept(store: Store) -> None:
    a, b = units(2)
    with pytest.raises(InputError, match="udcff"):
        store.add([new_row("a", a), NewItem("b\udcff.jpg", b"d", b)])  # how Python names a file that is not UTF-8
    assert len(store) == 0


def test_a_length_within_a_thousandth_is_taken(store: Store) -> None:
    vectors = units(2) * np.array([[0.9995], [1.0005]], np.float32)
    assert len(store.add(new_rows(vectors))) == 2
    assert store.check() == []


# Search


@pytest.mark.parametrize("exact", [True, False])
def test_search_against_its_slow_twin(store: Store, exact: bool) -> None:
    ids = store.add(new_rows(units(300)))
    kept = dict(zip(ids, store.vectors(ids), strict=True))
    queries = units(20, seed=1)
    answers = store.search(queries, 7, exact=exact)
    assert [found.exact for found in answers] == [True] * 20  # so few are compared one by one
    for query, found in zip(queries, answers, strict=True):
        right = slow_search(kept, query, 7)
        assert ids_of(found.hits) == [id for id, _ in right]
        assert [hit.score for hit in found.hits] == pytest.approx([score for _, score in right], abs=CLOSE)
        assert all(isinstance(hit.score, float) and -1 <= hit.score <= 1 for hit in found.hits)


def test_of_equal_scores_the_lower_id_comes_first(store: Store) -> None:
    vector = units(1)[0]
    ids = store.add([new_row(f"{9 - i}", vector) for i in range(9)])
    store.add(new_rows(units(20, seed=2)))
    (moved,) = store.add([new_row("9", vector)])  # the first again, with a higher id
    for exact in (True, False):
        assert ids_of(store.search(vector[None], 5, exact=exact)[0].hits) == ids[1:6]
        assert ids_of(store.search(vector[None], 9, exact=exact)[0].hits) == [*ids[1:], moved]


def test_a_row_is_its_own_nearest(store: Store) -> None:
    ids = store.add(new_rows(units(50)))
    answers = store.search(store.vectors(ids), 1)
    assert [found.hits[0].id for found in answers] == ids
    assert [found.hits[0].score for found in answers] == pytest.approx([1.0] * 50, abs=CLOSE)


def test_k_beyond_what_there_is(store: Store) -> None:
    store.add(new_rows(units(5), label="a"))
    store.add(new_rows(units(2, seed=3), start=10, label="b"))
    for exact in (True, False):
        assert len(store.search(units(1), 1000, exact=exact)[0].hits) == 7
        assert len(store.search(units(1), 1000, exact=exact, filter={"label": "b"})[0].hits) == 2


def test_what_was_calibrated_is_kept(place: Place) -> None:
    about = replace(ABOUT, own_threshold=0.123456789, own_rows=400, own_labels=2)
    with place.create(ABOUT) as store:
        store.calibrated(about)
        assert store.about == about
    with place.open() as reader:
        assert reader.about == about
        with pytest.raises(InputError):
            reader.calibrated(ABOUT)


def test_threshold(store: Store) -> None:
    store.add(new_rows(units(100)))
    query = units(1, seed=5)
    (found,) = store.search(query, 100)
    limit = found.hits[20].score
    (above,) = store.search(query, 100, threshold=limit)
    assert above.hits == found.hits[:21]
    assert store.search(query, 5, threshold=limit)[0].hits == found.hits[:5]
    assert store.search(query, 5, threshold=1.0)[0].hits == []
    assert len(store.search(query, 200, threshold=-1.0)[0].hits) == 100


@pytest.mark.parametrize("k", [0, -1])
def test_no_answers_cannot_be_asked_for(store: Store, k: int) -> None:
    with pytest.raises(InputError):
        store.search(units(1), k)


@pytest.mark.parametrize(
    "queries",
    [
        units(2, DIM + 1),
        2 * units(1),
        np.full((1, DIM), np.nan, np.float32),
        np.full((1, DIM), np.inf, np.float32),
    ],
)
def test_a_wrong_query_is_refused(store: Store, queries: NDArray[np.float32]) -> None:
    store.add(new_rows(units(3)))
    with pytest.raises(InputError):
        store.search(queries, 3)


def test_no_queries_no_answers(store: Store) -> None:
    store.add(new_rows(units(3)))
    assert store.search(np.empty((0, DIM), np.float32), 3) == []


# Search among many: the approximate index

MANY, WIDE = 1500, 24


def fill(place: Place, count: int) -> NDArray[np.float32]:
    """Create a gallery of so many items that searches are approximate; the vectors. Each 100th item is "rare"."""
    vectors = units(count, WIDE)
    with place.create(replace(ABOUT, dim=WIDE), exact_below=200) as store:
        rows = [
            replace(row, label="rare" if i % 100 == 0 else "usual", metadata={"half": i % 2 == 0})
            for i, row in enumerate(new_rows(vectors))
        ]
        store.add(rows)
    return vectors


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A gallery of `MANY` items, of both kinds in turn. Tests only read it."""
    if request.param == "sqlite":
        place: Place = Folder(tmp_path_factory.mktemp("many"))
    else:
        place = Database(request.getfixturevalue("postgres").dsn)
    fill(place, MANY)
    return place


def test_approximate_search_finds_what_exact_search_does(many: Place) -> None:
    with many.open(exact_below=200) as store:
        queries = units(40, WIDE, seed=4)
        near, right = store.search(queries, 10), store.search(queries, 10, exact=True)
        assert {found.exact for found in right} == {True}
        assert not all(found.exact for found in near)
        shares = [len({*ids_of(a.hits)} & {*ids_of(b.hits)}) / 10 for a, b in zip(near, right, strict=True)]
        assert np.mean(shares) >= 0.97
        for a, b in zip(near, right, strict=True):
            exactly = {hit.id: hit.score for hit in b.hits}
            assert all(hit.score == pytest.approx(exactly.get(hit.id, hit.score), abs=CLOSE) for hit in a.hits)
            assert [hit.score for hit in a.hits] == sorted((hit.score for hit in a.hits), reverse=True)
        own = store.search(units(MANY, WIDE)[::50], 1)
        assert np.mean([found.hits[0].path == f"{50 * i:05d}.jpg" for i, found in enumerate(own)]) >= 0.97
        assert 0.97 <= store.measure_recall(10, sample=50) <= 1
        assert store.measure_recall(5, sample=20, seed=3) == store.measure_recall(5, sample=20, seed=3)
        assert store.check() == []


def test_a_filter_costs_no_answers(many: Place) -> None:
    queries = units(10, WIDE, seed=4)
    filters: list[Filter] = [{"label": "rare"}, {"half": True}, {"label": ["rare", "none"], "half": True}]
    with many.open(exact_below=200) as store:
        for filter in filters:
            near, right = (store.search(queries, 15, filter=filter, exact=exact) for exact in (False, True))
            expected = min(15, store.count(filter))
            for a, b in zip(near, right, strict=True):
                assert len(a.hits) == len(b.hits) == expected
                assert all(_passes(hit, filter) for hit in a.hits)
                assert len({*ids_of(a.hits)} & {*ids_of(b.hits)}) >= expected - 1


def _passes(row: GalleryItem, filter: Filter) -> bool:
    found = {"label": row.label, **row.metadata}
    return all(found[key] in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in filter.items())


def test_changes_are_seen_at_once_by_an_approximate_search(place: Place) -> None:
    vectors = fill(place, 600)
    with place.open(write=True, exact_below=200) as store, place.open(exact_below=200) as reader:
        new = units(3, WIDE, seed=77)
        assert len(reader.search(new, 5)[0].hits) == 5  # it has looked before
        added = store.add(new_rows(new, start=9000))
        gone = [found.hits[0].id for found in store.search(vectors[:5], 1, exact=True)]
        assert store.remove(gone) == 5
        for one in (store, reader):
            assert [found.hits[0].id for found in one.search(new, 1)] == added
            answers = one.search(vectors[:5], 10)
            assert all(len(found.hits) == 10 for found in answers)
            assert not {*gone} & {id for found in answers for id in ids_of(found.hits)}
        store.update(added[:1], "new", {"half": None})
        assert ids_of(reader.search(new[:1], 5, filter={"label": "new"})[0].hits) == added[:1]
        store.compact()
        for one in (store, reader):
            assert [found.hits[0].id for found in one.search(new, 1)] == added
            assert not {*gone} & {id for found in one.search(vectors[:5], 50) for id in ids_of(found.hits)}
        assert store.check() == []


# Filters

VALUES: dict[str, Any] = {
    "one": 1,
    "one.0": 1.0,
    "true": True,
    "text": "1",
    "zero": 0,
    "false": False,
    "half": 0.5,
    "null": None,
    "empty": "",
    "word": "True",
    "big": 1 << 60,
}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (1, {"one", "one.0"}),
        (1.0, {"one", "one.0"}),
        (True, {"true"}),
        ("1", {"text"}),
        (0, {"zero"}),
        (False, {"false"}),
        (0.5, {"half"}),
        ("", {"empty"}),
        ("True", {"word"}),
        (1 << 60, {"big"}),
        ((1 << 60) + 1, set()),
        (None, {"null", "missing"}),
        ([1, "1"], {"one", "one.0", "text"}),
        ((True, None), {"true", "null", "missing"}),
        ([None], {"null", "missing"}),
        ([], set()),
        (["x", 2], set()),
        (AnyValue.ANY, {*VALUES} - {"null"}),
    ],
)
def test_filters_by_metadata(store: Store, wanted: Any, found: set[str]) -> None:
    vectors = units(len(VALUES) + 1)
    rows = [new_row(key, vector, metadata={"k": VALUES[key], "other": 1}) for key, vector in zip(VALUES, vectors)]  # noqa: B905
    store.add([*rows, new_row("missing", vectors[-1], metadata={"K": 1})])
    assert {*paths(store, {"k": wanted})} == found


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("cat", ["a"]),
        (["cat", "dog"], ["a", "b"]),
        (None, ["c"]),
        ([None, "dog"], ["b", "c"]),
        ("", ["d"]),
        (1, []),
        (True, []),
        (["1", 1], ["e"]),
        ([], []),
        ("CAT", []),
        ("c%", []),
        (AnyValue.ANY, ["a", "b", "d", "e"]),
    ],
)
def test_filters_by_label(store: Store, wanted: Any, found: list[str]) -> None:
    labels = ["cat", "dog", None, "", "1"]
    store.add([new_row(p, v, label=label) for p, v, label in zip("abcde", units(5), labels, strict=True)])
    assert paths(store, {"label": wanted}) == found


def test_all_conditions_must_hold(store: Store) -> None:
    v = units(4)
    store.add(
        [
            new_row("a", v[0], label="cat", metadata={"x": 1, "y": 1}),
            new_row("b", v[1], label="cat", metadata={"x": 1, "y": 2}),
            new_row("c", v[2], label="dog", metadata={"x": 1, "y": 1, "path": "a", "label": "cat"}),
            new_row("d", v[3], label="cat", metadata={"x": 2, "y": 1}),
        ]
    )
    assert paths(store, {"label": "cat", "x": 1, "y": [1, 2]}) == ["a", "b"]
    assert paths(store, {"label": "cat", "x": 1, "y": 1}) == ["a"]
    assert paths(store, {"path": ["a", "c", "none"]}) == ["a", "c"]  # the row's own, not what metadata call so
    assert paths(store, {"label": "cat", "path": ["a", "c"]}) == ["a"]
    assert paths(store, {}) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("key", ["k'ey", 'k"ey', "k%sey", "k{e}y", "k\\ey", "ключ", "k ey", "$.k", ""])
def test_any_text_is_a_key(store: Store, key: str) -> None:
    a, b = units(2)
    store.add([new_row("a", a, metadata={key: "v'\"%s{}\\"}), new_row("b", b)])
    assert paths(store, {key: "v'\"%s{}\\"}) == ["a"]
    assert paths(store, {key: None}) == ["b"]


def test_many_values_pass_what_each_of_them_does(store: Store) -> None:
    """Beyond a few, PostgreSQL is asked in another way."""
    rows = [new_row(key, vector, metadata={"k": VALUES[key]}) for key, vector in zip(VALUES, units(11), strict=True)]
    store.add([*rows, new_row("missing", units(1, seed=1)[0])])
    others = [f"no {number}" for number in range(500)]
    most = [f"no {number}" for number in range(common.MAX_VALUES - 1)]
    assert store.count({"k": [True, *most]}) == 1
    assert {*paths(store, {"k": [1, *others, 0.5]})} == {"one", "one.0", "half"}
    assert {*paths(store, {"k": [True, *others]})} == {"true"}
    assert {*paths(store, {"k": [None, "", *others]})} == {"null", "missing", "empty"}
    assert paths(store, {"label": others}) == []
    assert {*paths(store, {"path": ["one", *others], "k": [1, 1.0]})} == {"one"}


@pytest.mark.parametrize(
    ("filter", "match"),
    [
        ({"k": list(range(10_001))}, "'k'.* 10,000 "),
        ({"label": ["a"] * 9_999, "k": [1, 2]}, "'k'.* 10,000 "),
        ({f"k{number}": 1 for number in range(101)}, " 100 "),
        ({"path": ["x" * 600_000, "y" * 500_000]}, "'path'.* 1 MiB"),
        ({"k" * 2**20: 1}, "1 MiB"),
        ({"k": 10**5000}, "."),
    ],
)
def test_a_filter_has_bounds(store: Store, filter: Filter, match: str) -> None:
    for use in (
        lambda: store.count(filter),
        lambda: list(store.rows(filter=filter)),
        lambda: store.search(units(1), filter=filter),
    ):
        with pytest.raises(InputError, match=match):
            use()


def test_a_number_larger_than_any_id_is_the_id_of_no_row(store: Store) -> None:
    ids = store.add(new_rows(units(2), thumbnail=b"t"))
    for id in (1 << 63, 10**20, -(1 << 63) - 1, -(10**20), np.uint64(2**64 - 1)):
        assert store.get([ids[0], id]) == [store.get(ids)[0], None]
        assert (store.thumbnail(id), store.remove([id]), store.update([id], "cat")) == (None, 0, 0)
        with pytest.raises(InputError, match=f" {id}\\b"):
            store.vectors([ids[0], id])
        with store.snapshot() as kept:
            assert (kept.get([id]), kept.thumbnails([id])) == ([None], [b""])
    assert [list(store.rows(after=after)) for after in (1 << 63, 10**20)] == [[], []]
    assert len(list(store.rows(after=-(10**20)))) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": 1}, [1, [2]]])
def test_a_value_that_cannot_be_asked_for(store: Store, value: Any) -> None:
    with pytest.raises(InputError):
        store.count({"k": value})


# Labels


def test_label_changes_what_is_given_and_nothing_else(store: Store) -> None:
    ids = store.add(new_rows(units(3), label="old", metadata={"x": 1, "y": 2}, thumbnail=b"t", dhash=5))
    before = store.get(ids)
    assert store.update([ids[0], 999, ids[0]], "new") == 1
    assert store.update([ids[1]], metadata={"x": 3}) == 1
    assert store.update([ids[2]]) == 1
    assert store.update([], "new") == 0
    after = store.get(ids)
    assert before[0] is not None
    assert before[1] is not None
    assert after == [replace(before[0], label="new"), replace(before[1], metadata={"x": 3}), before[2]]
    assert store.thumbnail(ids[0]) == b"t"
    assert paths(store, {"label": "new"}) == ["00000.jpg"]
    assert paths(store, {"y": 2}) == ["00000.jpg", "00002.jpg"]
    assert store.update(ids, "all", {}) == 3
    assert {(row.label, len(row.metadata)) for row in store.rows()} == {("all", 0)}
    assert store.count({"y": 2}) == 0


def test_remove_counts_what_was_there(store: Store) -> None:
    ids = store.add(new_rows(units(4), thumbnail=b"t"))
    assert store.remove([ids[1], ids[1], 12345, ids[2]]) == 2
    assert store.remove([ids[1]]) == 0
    assert len(store) == 2
    assert store.thumbnail(ids[1]) is None
    assert ids_of(store.search(units(1), 10)[0].hits) != []
    assert {*ids_of(store.search(units(1), 10)[0].hits)} == {ids[0], ids[3]}
    with pytest.raises(InputError):
        store.vectors([ids[1]])


def test_labels_are_counted_the_most_frequent_first(store: Store) -> None:
    assert store.labels(10) == []
    kinds = ["emu", "cat", "ärger", "cat", "Cat", "emu", "dog", "cat"]
    ids = store.add(
        [new_row(f"{n}.jpg", vector, label=kind) for n, (kind, vector) in enumerate(zip(kinds, units(8), strict=True))]
    )
    store.add(new_rows(units(3), start=100))  # without a label
    every = [("cat", 3), ("emu", 2), ("Cat", 1), ("dog", 1), ("ärger", 1)]
    assert (store.labels(10), store.labels(2)) == (every, every[:2])
    store.update([ids[6]], "emu")
    store.remove([ids[1], ids[3]])
    assert store.labels(10) == [("emu", 3), ("Cat", 1), ("cat", 1), ("ärger", 1)]


# Rejected files


def test_rejected_files(place: Place) -> None:
    with place.create() as store:
        store.reject(
            [FailedFile("b.jpg", "truncated", 10, 1 << 60), FailedFile("a.jpg", "empty"), FailedFile("Z.jpg", "x")]
        )
        store.reject([FailedFile("b.jpg", "not an image", 11, 5), FailedFile("c", "1"), FailedFile("c", "2")])
        store.reject([])
    with place.open(write=True) as store:
        expected = [
            FailedFile("Z.jpg", "x"),
            FailedFile("a.jpg", "empty"),
            FailedFile("b.jpg", "not an image", 11, 5),
            FailedFile("c", "2"),
        ]
        assert store.rejected() == expected
        store.forget(["c", "not there"])
        store.forget([])
        store.add([new_row("a.jpg", units(1)[0])])
        assert store.rejected() == [expected[0], expected[2]]
        assert len(store) == 1


def test_a_row_that_is_refused_leaves_its_rejection(store: Store) -> None:
    store.reject([FailedFile("a.jpg", "empty")])
    with pytest.raises(InputError):
        store.add([new_row("a.jpg", units(1)[0] * 2)])
    assert store.rejected() == [FailedFile("a.jpg", "empty")]


# Opening, closing, several at once


def test_create_where_there_is_one(place: Place) -> None:
    with place.create() as store:
        store.add(new_rows(units(2)))
    with pytest.raises(InputError):
        place.create()
    with place.open() as store:
        assert len(store) == 2


@pytest.mark.parametrize("write", [False, True])
def test_open_where_there_is_none(place: Place, write: bool) -> None:
    with pytest.raises(InputError):
        place.open(write)
    place.create().close()  # and nothing was left in its way


@pytest.mark.parametrize("dim", [0, -3])
def test_vectors_of_no_numbers_cannot_be_kept(place: Place, dim: int) -> None:
    with pytest.raises(InputError):
        place.create(replace(ABOUT, dim=dim))
    place.create().close()


def test_a_reader_cannot_write(place: Place) -> None:
    with place.create() as store:
        ids = store.add(new_rows(units(2)))
        store.reject([FailedFile("r", "x")])
    with place.open() as reader:
        changes: Sequence[Any] = (
            lambda: reader.add(new_rows(units(1))),
            lambda: reader.remove(ids),
            lambda: reader.update(ids, "cat"),
            lambda: reader.reject([FailedFile("s", "x")]),
            lambda: reader.forget(["r"]),
            lambda: reader.compact(),
        )
        for change in changes:
            with pytest.raises(InputError):
                change()
        assert (len(reader), reader.count({"label": "cat"}), len(reader.rejected())) == (2, 0, 1)
        assert reader.check() == []


def test_a_closed_store_answers_no_more(place: Place) -> None:
    store = place.create()
    with store as entered:
        assert entered is store
        store.add(new_rows(units(2)))
    store.close()  # once more does no harm
    for use in (lambda: len(store), lambda: store.search(units(1), 1), lambda: store.add(new_rows(units(1)))):
        with pytest.raises(InputError, match="closed"):
            use()
    with place.open() as again:
        assert len(again) == 2


def test_a_store_is_closed_by_an_error_too(place: Place) -> None:
    def work() -> None:
        with place.create() as store:
            store.add(new_rows(units(2)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    with place.open(write=True) as store:  # not held by the one before
        assert len(store) == 2


def test_readers_see_whole_batches(place: Place) -> None:
    batch, batches = 20, 15
    with place.create() as store, place.open() as reader:

        def write() -> None:
            for i in range(batches):
                store.add(new_rows(units(batch, seed=i), start=batch * (i % 5)))  # later ones replace earlier ones

        writer = threading.Thread(target=write)
        writer.start()
        seen = []
        while writer.is_alive():
            seen += [len(reader), len(list(reader.rows())), len(reader.search(units(1), 1000)[0].hits), reader.count()]
        writer.join()
        assert {n % batch for n in seen} <= {0}
        assert len(reader) == 5 * batch


def test_another_gallery_at_its_place_is_told_from_this_one(place: Place) -> None:
    with place.create() as first:
        first.add(new_rows(units(5)))
    reader, writer = place.open(), place.open(write=True)
    asked: list[Callable[[], object]] = [
        lambda: len(reader),
        lambda: reader.search(units(1)),
        lambda: reader.get([1]),
        lambda: reader.thumbnail(1),
        lambda: reader.vectors([1]),
        lambda: list(reader.rows()),
        lambda: reader.labels(3),
        reader.facts,
        reader.check,
        reader.measure_recall,
        writer.compact,
        lambda: writer.add(new_rows(units(1, seed=1), start=50)),
        lambda: writer.remove([1]),
        lambda: writer.update([1], "cat"),
        lambda: writer.reject([FailedFile("x.jpg", "why")]),
        lambda: len(writer),
    ]
    place.clear()
    for ask in asked:
        with pytest.raises(InputError):
            ask()
    with place.create() as second:
        second.add(new_rows(units(2, seed=2)))
    for ask in asked:
        with pytest.raises(ReplacedError):
            ask()
    reader.close()
    writer.close()
    with place.open(write=True) as now:
        assert [row.path for row in now.rows()] == ["00000.jpg", "00001.jpg"]
        assert not now.rejected()
        assert not now.check()
        assert now.add(new_rows(units(1, seed=3), start=2)) == [3]


def test_a_snapshot_is_of_one_moment(place: Place) -> None:
    with place.create() as store, place.open() as reader:
        for opened in (store, reader):
            ids = store.add(new_rows(units(20), thumbnail=b"t"))
            rows, vectors = list(store.rows()), store.vectors(ids)
            with opened.snapshot() as kept:
                seen = []
                for row in kept.rows():
                    seen.append(row)
                    if len(seen) == 3:
                        store.remove(ids[5:9])
                        again = store.add(new_rows(units(20, seed=1), label="new"))
                        store.update(again, "newer")
                assert (seen, len(kept), kept.about) == (rows, 20, ABOUT)
                assert (kept.vectors(ids) == vectors).all()
                assert kept.get([*ids, again[0]]) == [*rows, None]
                assert kept.thumbnails([ids[3], again[0], 10**15]) == [b"t", b"", b""]
                with pytest.raises(InputError, match=f" {again[0]}\\b"):
                    kept.vectors([again[0]])
            assert [(row.id, row.label) for row in store.rows()] == [(id, "newer") for id in again]


def test_threads_take_turns(store: Store) -> None:
    ids = store.add(new_rows(units(100)))
    queries = store.vectors(ids)
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(number, 100, 4):
                assert store.search(queries[i : i + 1], 1)[0].hits[0].id == ids[i]
                if i % 10 == number:
                    store.add([new_row(f"thread-{number}-{i}", units(1, seed=1000 + i)[0])])
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert store.check() == []


def test_compact_changes_nothing_that_is_seen(place: Place) -> None:
    with place.create() as store, place.open() as reader:
        ids = store.add(new_rows(units(200), label="a", metadata={"x": 1}, thumbnail=b"t" * 100))
        store.reject([FailedFile("r", "x")])
        store.remove(ids[::2])
        before = list(store.rows()), store.vectors(ids[1::2]).tolist(), store.search(units(3, seed=8), 5)
        store.compact()
        for one in (store, reader):
            assert (list(one.rows()), one.vectors(ids[1::2]).tolist(), one.search(units(3, seed=8), 5)) == before
            assert one.thumbnail(ids[1]) == b"t" * 100
            assert one.rejected() == [FailedFile("r", "x")]
            assert one.check() == []
        assert min(store.add(new_rows(units(1), start=900))) > max(ids)


def test_facts(store: Store) -> None:
    store.add(new_rows(units(10)))
    facts = store.facts()
    assert facts["rows"] == 10
    assert isinstance(facts["bytes"], int)
    assert facts["bytes"] > 10 * DIM * 2
    assert {"kind", "location", "covered by the approximate index"} <= facts.keys()
    assert all(isinstance(value, str | int | float) for value in facts.values())


# Any sequence of changes, against a dictionary

CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=4)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 20), max_size=4)),
        st.tuples(st.just("label"), st.lists(st.integers(0, 20), max_size=4), st.sampled_from(["p", "q", None])),
        st.tuples(st.just("compact")),
    ),
    max_size=8,
)


class Twin:
    """The slow and obvious store: a dictionary of rows and their vectors."""

    def __init__(self) -> None:
        self.rows: dict[int, GalleryItem] = {}
        self.vectors: dict[int, NDArray[np.float32]] = {}

    def add(self, ids: Sequence[int], rows: Sequence[NewItem]) -> None:
        for id, row in zip(ids, rows, strict=True):
            self.remove([old.id for old in self.rows.values() if old.path == row.path])
            self.rows[id] = GalleryItem(id, row.path, row.digest, 0, 0, row.label, dict(row.metadata), 0)
            self.vectors[id] = row.vector.astype(np.float16).astype(np.float32)

    def remove(self, ids: Iterable[int]) -> int:
        return sum(self.rows.pop(id, None) is not None for id in {*ids} if self.vectors.pop(id, None) is not None)

    def update(self, ids: Iterable[int], label: str | None, metadata: Mapping[str, Any] | None) -> int:
        there = {*ids} & self.rows.keys()
        for id in there:
            row = self.rows[id]
            self.rows[id] = replace(
                row,
                label=row.label if label is None else label,
                metadata=row.metadata if metadata is None else metadata,
            )
        return len(there)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=CHANGES)
def test_any_changes_leave_what_a_dictionary_would(store: Store, changes: list[Any]) -> None:
    store.remove([row.id for row in store.rows()])
    twin, known = Twin(), [0]
    for change in changes:
        if change[0] == "add":
            rows = [
                new_row(f"{p}", units(1, seed=s)[0], label="pq"[s % 2], metadata={"s": s % 3}) for p, s in change[1]
            ]
            ids = store.add(rows)
            assert all(id > max(known) for id in ids)
            twin.add(ids, rows)
            known += ids
        elif change[0] == "remove":
            chosen = [known[i % len(known)] for i in change[1]]
            assert store.remove(chosen) == twin.remove(chosen)
        elif change[0] == "label":
            chosen = [known[i % len(known)] for i in change[1]]
            metadata = None if change[2] == "p" else {"s": 2}
            assert store.update(chosen, change[2], metadata) == twin.update(chosen, change[2], metadata)
        else:
            store.compact()
    assert list(store.rows()) == [twin.rows[id] for id in sorted(twin.rows)]
    for filter in ({}, {"label": "p"}, {"s": [0, 2]}):
        passing = {id: twin.vectors[id] for id, row in twin.rows.items() if not filter or _passes(row, filter)}
        (found,) = store.search(units(1, seed=99), 3, filter=filter)
        right = slow_search(passing, units(1, seed=99)[0], 3)
        assert ids_of(found.hits) == [id for id, _ in right]
        assert [hit.score for hit in found.hits] == pytest.approx([score for _, score in right], abs=1e-3)
