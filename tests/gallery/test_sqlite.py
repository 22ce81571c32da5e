"""The store in a folder: searches, index files, writers. `test_stores.py` tests what all stores do."""

from __future__ import annotations

import gc
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlite_items import ABOUT, ids_found, made, recall, rows_of, slow_search, vectors_of

from lookalike.errors import InputError
from lookalike.gallery.store import index_maintenance, sqlite_rows, vector_search
from lookalike.gallery.store.ann_index import HnswIndex
from lookalike.gallery.store.base import NewItem, ReplacedError
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.gallery.store.vector_search import VectorView

EXACT_BELOW = 200
ROWS = 2000
QUERIES = vectors_of(40, seed=5)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery beyond the size of exact search, closed."""
    folder = tmp_path_factory.mktemp("big") / "big.gallery"
    made(folder, ROWS, exact_below=EXACT_BELOW).close()
    return folder


def test_exact_search_is_the_slow_one(big: Path) -> None:
    with SqliteStore.open(big, exact_below=EXACT_BELOW) as store:
        found = store.search(QUERIES, 7, exact=True)
        assert all(one.exact for one in found)
        assert [[hit.id for hit in one.hits] for one in found] == slow_search(store, QUERIES, 7)


def test_approximate_search_says_so_and_finds_the_same(big: Path) -> None:
    with SqliteStore.open(big, exact_below=EXACT_BELOW) as store:
        approximate = store.search(QUERIES, 10)
        exact = store.search(QUERIES, 10, exact=True)
        assert not any(one.exact for one in approximate)
        assert recall(ids_found(store, QUERIES), ids_found(store, QUERIES, exact=True)) >= 0.99
        scores = {(q, hit.id): hit.score for q, one in enumerate(exact) for hit in one.hits}
        both = [(scores.get((q, hit.id)), hit.score) for q, one in enumerate(approximate) for hit in one.hits]
        assert all(a == b for a, b in both if a is not None)


def test_a_change_that_a_gallery_leaves_in_the_middle_of_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = tmp_path / "some.gallery", tmp_path / "away.gallery"
    store = made(folder, 3, exact_below=EXACT_BELOW)
    insert = sqlite_rows.insert

    def replaced(*given: Any) -> list[int]:
        ids = insert(*given)
        monkeypatch.undo()
        folder.rename(away)
        made(folder, 2, exact_below=EXACT_BELOW).close()
        return ids

    monkeypatch.setattr(sqlite_rows, "insert", replaced)
    with pytest.raises(ReplacedError):
        store.add(rows_of(vectors_of(4, seed=9)))
    store.close()
    for place, count in ((away, 3), (folder, 2)):
        with SqliteStore.open(place) as now:
            assert (len(now), now.check()) == (count, [])


def test_a_writer_that_closes_leaves_the_files_of_another_gallery_alone(tmp_path: Path) -> None:
    folder = tmp_path / "some.gallery"
    store = made(folder, 300, exact_below=EXACT_BELOW)
    store.add(rows_of(vectors_of(300, seed=9), start=300))
    folder.rename(tmp_path / "away.gallery")
    made(folder, 400, exact_below=EXACT_BELOW).close()
    before = sorted(path.name for path in folder.iterdir())
    assert any(name.startswith("graph-") for name in before)
    store.close()
    assert sorted(path.name for path in folder.iterdir()) == before
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as now:
        assert not now.check()
        assert not now.search(QUERIES[:1])[0].exact


def test_recall_is_measured(big: Path) -> None:
    with SqliteStore.open(big, exact_below=EXACT_BELOW) as store:
        assert 0.99 <= store.measure_recall(10, 100) <= 1
    with SqliteStore.open(big, exact_below=ROWS) as store:
        assert store.measure_recall() == 1
        assert store.search(QUERIES[:1])[0].exact


def test_a_poor_graph_is_measured_as_poor(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HnswIndex, "nearest", lambda self, query, count: np.arange(0, 40, dtype=np.int64))
    monkeypatch.setattr(VectorView, "_nothing_missed", lambda *given: True)
    with SqliteStore.open(big, exact_below=EXACT_BELOW) as store:
        assert store.measure_recall(10, 50) < 0.5


def test_newer_rows_are_folded_in_and_removed_ones_are_gone(tmp_path: Path) -> None:
    with made(tmp_path / "g", 1000, exact_below=EXACT_BELOW) as store:
        covered = store.facts()["covered by the approximate index"]
        twin = vectors_of(1000)[0]
        new = store.add([NewItem("new.jpg", b"new", twin)])
        assert store.facts()["covered by the approximate index"] == covered
        found = store.search(twin, 2)[0]
        assert [hit.id for hit in found.hits] == [1, *new]  # the very same vector: the lower id comes first
        assert not found.exact
        store.remove([1])
        assert store.search(twin, 1)[0].hits[0].id == new[0]
        store.remove(new)
        assert store.search(twin, 1)[0].hits[0].path not in {"new.jpg", "000000.jpg"}


def test_recall_holds_while_rows_are_removed(tmp_path: Path) -> None:
    with made(tmp_path / "g", ROWS, exact_below=EXACT_BELOW) as store:
        assert store.remove(range(1, ROWS, 3)) == 667
        right = ids_found(store, QUERIES, exact=True)
        assert right == slow_search(store, QUERIES, 10)
        assert recall(ids_found(store, QUERIES), right) >= 0.99


@pytest.mark.parametrize("filter", [{"label": "class 3"}, {"even": True}, {"label": ["class 1", "class 2"], "n": 11}])
def test_a_filter_costs_no_answers(big: Path, filter: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    with SqliteStore.open(big, exact_below=EXACT_BELOW) as store:
        passing = list(store.rows(filter=filter))
        right = slow_search(store, QUERIES, 10, passing)
        few = store.search(QUERIES, 10, filter=filter)
        assert all(one.exact for one in few)
        assert [[hit.id for hit in one.hits] for one in few] == right
    monkeypatch.setattr(vector_search, "MAX_EXACT_FILTERED", 0)
    with SqliteStore.open(big, exact_below=EXACT_BELOW) as store:  # too many rows pass to compare with each
        assert recall(ids_found(store, QUERIES, filter=filter), right) >= 0.99


def test_what_a_filter_knows_changes_with_the_rows(tmp_path: Path) -> None:
    with made(tmp_path / "g", 300, exact_below=EXACT_BELOW) as store, SqliteStore.open(tmp_path / "g") as reader:
        filter = {"n": [5, 6]}
        assert ids_found(reader, QUERIES[:1], filter=filter) == ids_found(store, QUERIES[:1], filter=filter)
        store.update([6], metadata={"n": 7})
        store.add(rows_of(vectors_of(1, seed=8), 5)[:1])
        found = ids_found(reader, QUERIES[:1], filter=filter)
        assert found == ids_found(store, QUERIES[:1], filter=filter)
        assert sorted(found[0]) == [7, 301]


def test_equal_vectors_come_by_id(tmp_path: Path) -> None:
    vector = vectors_of(1)[0]
    with SqliteStore.create(tmp_path / "g", ABOUT, exact_below=50) as store:
        ids = store.add([NewItem(f"{n}", b"", vector) for n in range(1200)])
        assert ids_found(store, vector, 30, exact=True) == [ids[:30]]
        assert ids_found(store, vector, 1100, exact=True) == [ids[:1100]]
        assert len(ids_found(store, vector, 30)[0]) == 30


def test_many_answers_are_exact(big: Path) -> None:
    with SqliteStore.open(big, exact_below=EXACT_BELOW) as store:
        found = store.search(QUERIES[0], 900)[0]
        assert found.exact
        assert len(found.hits) == 900
        assert len(store.search(QUERIES[0], 5000)[0].hits) == ROWS


def test_compaction_gives_space_back(tmp_path: Path) -> None:
    with made(tmp_path / "g", ROWS, exact_below=EXACT_BELOW) as store:
        store.remove(range(1, ROWS - 100))
    with SqliteStore.open(tmp_path / "g", write=True, exact_below=EXACT_BELOW) as store:
        before = store.facts()["bytes"]
        right = ids_found(store, QUERIES)
        store.compact()
        assert ids_found(store, QUERIES) == right
        assert store.check() == []
    with SqliteStore.open(tmp_path / "g") as store:
        assert store.facts()["bytes"] < before / 3


def test_index_files_grow_by_new_items(tmp_path: Path) -> None:
    with made(tmp_path / "g", 600, exact_below=EXACT_BELOW) as store:
        assert store.facts()["covered by the approximate index"] >= 400
    with SqliteStore.open(tmp_path / "g", write=True, exact_below=EXACT_BELOW) as store:
        assert store.facts()["covered by the approximate index"] == 600
        ids = store.add(rows_of(vectors_of(60, seed=3), 600))
        store.remove(ids[::2])
    with SqliteStore.open(tmp_path / "g", exact_below=EXACT_BELOW) as store:
        assert store.facts()["covered by the approximate index"] == 630
        assert recall(ids_found(store, QUERIES), ids_found(store, QUERIES, exact=True)) >= 0.99
        assert store.check() == []
    assert len(list((tmp_path / "g").glob("graph-*"))) == 1


def test_rows_are_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_rows, "PAGE", 50)
    with made(tmp_path / "g", 200, exact_below=10_000) as store:
        rows = store.rows()
        first = next(rows)
        store.remove(range(2, 150))
        store.add(rows_of(vectors_of(10, seed=4), 5000))
        assert [first.id, *(row.id for row in rows)] == list(range(1, 201))


def test_several_writers_take_turns(tmp_path: Path) -> None:
    """Each adds and removes rows; whichever finds the index files out of date renews them."""
    SqliteStore.create(tmp_path / "g", ABOUT, exact_below=50).close()
    faults: list[BaseException] = []

    def write(number: int) -> None:
        try:
            vectors = vectors_of(400, seed=number)
            with SqliteStore.open(tmp_path / "g", write=True, exact_below=50) as store:
                for start in range(0, 400, 40):
                    ids = store.add(rows_of(vectors[start : start + 40], 1000 * number + start))
                    assert store.remove(ids[::4]) == 10
                    assert store.search(vectors[start + 1], 1)[0].hits[0].id == ids[1]
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with SqliteStore.open(tmp_path / "g", exact_below=50) as store:
        assert len(store) == 900
        assert store.check() == []
        assert not store.search(QUERIES[:1])[0].exact
        assert recall(ids_found(store, QUERIES), ids_found(store, QUERIES, exact=True)) >= 0.98


def test_changes_of_another_writer_while_the_index_is_renewed_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(tmp_path / "g", 600, exact_below=EXACT_BELOW) as store:
        make = index_maintenance.make_generation

        def interrupted(*given: Any, **how: Any) -> Any:
            new = make(*given, **how)
            with SqliteStore.open(tmp_path / "g", write=True, exact_below=EXACT_BELOW) as other:
                assert other.remove([1, 599]) == 2
                assert other.add(rows_of(vectors_of(1, seed=8), 9000)) == [601]
                with pytest.raises(InputError, match=r"g: "):
                    other.compact()
            return new

        monkeypatch.setattr(index_maintenance, "make_generation", interrupted)
        store.compact()
        monkeypatch.undo()
        for one in (store, SqliteStore.open(tmp_path / "g", exact_below=EXACT_BELOW)):
            assert len(one) == 599
            assert not {1, 599} & set(ids_found(one, vectors_of(600)[[0, 598]], 5)[0])
            assert ids_found(one, vectors_of(1, seed=8), 1) == [[601]]
            assert one.check() == []
        one.close()


def test_folders_that_are_no_gallery(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: "):
        SqliteStore.open(tmp_path / "none")
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        SqliteStore.open(tmp_path, write=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "gallery.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(InputError, match=r"gallery.db"):
        SqliteStore.open(tmp_path)
    (tmp_path / "gallery.db").unlink()
    with sqlite3.connect(tmp_path / "gallery.db") as db:
        db.execute("CREATE TABLE other (x)")
    db.close()
    with pytest.raises(InputError, match=r"gallery.db"):
        SqliteStore.open(tmp_path, write=True)
    (tmp_path / "gallery.db").write_bytes(b"")
    with pytest.raises(InputError, match=r"gallery.db"):
        SqliteStore.open(tmp_path)


def test_a_newer_format_is_refused_by_number(tmp_path: Path) -> None:
    SqliteStore.create(tmp_path / "g", ABOUT).close()
    db = sqlite3.connect(tmp_path / "g" / "gallery.db")
    db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(InputError, match=r"format 7.*Upgrade"):
        SqliteStore.open(tmp_path / "g")


def test_create_takes_no_folder_that_is_in_use(tmp_path: Path) -> None:
    made(tmp_path / "g", 3, exact_below=10).close()
    with pytest.raises(InputError, match="g: "):
        SqliteStore.create(tmp_path / "g", ABOUT)
    with SqliteStore.open(tmp_path / "g") as store:
        assert store.about == ABOUT
        assert len(store) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_a_gallery_that_was_deleted_takes_no_rows(tmp_path: Path) -> None:
    store = SqliteStore.create(tmp_path / "g", ABOUT)
    for path in (tmp_path / "g").iterdir():
        path.unlink()
    with pytest.raises(ReplacedError, match="g: "):
        store.add(rows_of(vectors_of(1)))
    store.close()


def test_a_writer_whose_folder_was_replaced_leaves_the_log_of_the_other(tmp_path: Path) -> None:
    """SQLite removes a log by its name when the last connection closes; closed or only let go."""
    for let_go in (lambda store: store.close(), lambda store: None):
        old = SqliteStore.create(tmp_path / "g", ABOUT)
        old.add(rows_of(vectors_of(1)))
        (tmp_path / "g").rename(tmp_path / "old")
        with SqliteStore.create(tmp_path / "g", ABOUT) as new:
            new.add(rows_of(vectors_of(3)))
            let_go(old)
            del old
            gc.collect()
            assert (tmp_path / "g" / "gallery.db-wal").stat().st_size
            with SqliteStore.open(tmp_path / "g") as reader:
                assert len(reader) == 3
        with SqliteStore.open(tmp_path / "old", write=True) as store:
            assert len(store) == 1
        shutil.rmtree(tmp_path / "g")
        shutil.rmtree(tmp_path / "old")


def test_opening_loads_nothing_heavy() -> None:
    code = "import lookalike.gallery.store.sqlite, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pyarrow", "scipy"} & set(json.loads(done.stdout))


def test_what_the_graph_misses_altogether_is_noticed(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = HnswIndex.nearest

    def misled(self: HnswIndex, query: np.ndarray, count: int) -> np.ndarray:  # as if it were led to the opposite side
        return honest(self, -query, count) if count <= 40 else honest(self, query, count)

    monkeypatch.setattr(HnswIndex, "nearest", misled)
    with SqliteStore.open(big, exact_below=EXACT_BELOW) as store:
        right = ids_found(store, QUERIES, exact=True)
        assert recall(ids_found(store, QUERIES), right) >= 0.9
        filter = {"even": True}
        assert (
            recall(ids_found(store, QUERIES, filter=filter), ids_found(store, QUERIES, filter=filter, exact=True))
            >= 0.9
        )


def test_what_was_removed_is_not_remembered_for_ever(tmp_path: Path) -> None:
    vectors = vectors_of(40)
    with SqliteStore.create(tmp_path / "g", ABOUT, exact_below=50) as store, SqliteStore.open(tmp_path / "g") as reader:
        for start in range(0, 400, 40):
            store.remove(store.add(rows_of(vectors, start)))
            assert reader.search(QUERIES[0])[0].hits == []
        store.add(rows_of(vectors))
        assert len(reader.search(QUERIES[0])[0].hits) == 10
        assert store.check() == []
    db = sqlite3.connect(tmp_path / "g" / "gallery.db")
    assert db.execute("SELECT count(*) FROM removed").fetchone()[0] <= 90
    db.close()


def test_leftovers_of_a_killed_writer_are_cleared(tmp_path: Path) -> None:
    made(tmp_path / "g", 600, exact_below=EXACT_BELOW).close()
    names = {path.name for path in (tmp_path / "g").iterdir()}
    for name in ("vectors-abc.f16", "graph-abc.usearch", ".graph-abc.usearch.partial"):
        (tmp_path / "g" / name).write_bytes(b"half")
    SqliteStore.open(tmp_path / "g", write=True).close()
    assert {path.name for path in (tmp_path / "g").iterdir()} == names
