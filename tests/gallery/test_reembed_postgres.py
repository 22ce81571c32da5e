"""A gallery in PostgreSQL gets another model while other processes search, add, compact and do the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from postgres_server import Server
from stores import ABOUT, Database, new_rows, units

from lookalike.errors import InputError
from lookalike.gallery.store.base import ReplacedError

psycopg = pytest.importorskip("psycopg")
from lookalike.gallery.store import postgres_reembed, postgres_rows  # noqa: E402

NEXT = replace(ABOUT, fingerprint="cd" * 32, model="runs/next/model")  # of the same dimension


def ask(server: Server, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run SQL as the superuser; what it answers."""
    with psycopg.connect(server.dsn, autocommit=True) as db:
        cursor = db.execute(query, parameters or None)
        return cursor.fetchall() if cursor.description else []


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def oid_of_index(server: Server, database: Database) -> int:
    query = "SELECT indexrelid::bigint, indisvalid FROM pg_index WHERE indexrelid = %s::regclass"
    ((oid, valid),) = ask(server, query, f"{database.name}.images_by_vector_next")
    assert valid
    return int(oid)


def test_who_waits_for_the_switch_sees_the_new_model(
    database: Database, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, go_on = threading.Event(), threading.Event()
    reject = postgres_rows.reject

    def slow(*arguments: Any) -> None:  # called while the switch holds its locks
        locked.set()
        assert go_on.wait(60)
        reject(*arguments)

    monkeypatch.setattr(postgres_rows, "reject", slow)
    old, new = units(4), units(4, seed=1)
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation IN (%s::regclass, %s::regclass)"
    tables = (f"{database.name}.gallery", f"{database.name}.images")
    with (
        database.create() as store,
        database.open() as reader,
        database.open(write=True) as writer,
        ThreadPoolExecutor(3) as threads,
    ):
        ids = store.add(new_rows(old))
        assert (len(reader), len(writer)) == (4, 4)
        with store.reembedding(NEXT) as work:
            work.add(ids, new)
            switched = threads.submit(work.switch, {})
            assert locked.wait(60)
            late = [
                threads.submit(reader.search, old, 1),
                threads.submit(writer.add, new_rows(units(1, seed=2), start=9)),
            ]
            until(lambda: len(ask(postgres, waiting, *tables)) == 2)
            go_on.set()
            assert switched.result()
        for one in late:
            assert isinstance(one.exception(), ReplacedError)
        assert len(store) == 4


def test_one_process_at_a_time(database: Database) -> None:
    with database.create() as store, database.open(write=True) as other:
        ids = store.add(new_rows(units(3)))
        with store.reembedding(NEXT) as work:
            work.add(ids[:1], units(1))
            for about in (NEXT, replace(NEXT, fingerprint="ef" * 32)):
                with pytest.raises(InputError, match="re-embedding"), other.reembedding(about):
                    pass
            with pytest.raises(InputError, match="re-embedding"):
                other.compact()
            assert work.ids().tolist() == ids[:1]
        with other.reembedding(NEXT) as work:
            assert work.ids().tolist() == ids[:1]


def test_an_index_that_is_complete_is_not_made_again(
    database: Database, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.create(exact_below=1) as store, database.open(write=True) as writer:
        ids = store.add(new_rows(units(3)))
        link = store._link  # type: ignore[attr-defined]
        writing = link.writing

        def late(work: Any) -> Any:  # an item comes after the index is made, before the switch
            ids.extend(writer.add(new_rows(units(1, seed=len(ids)), start=50 + len(ids))))
            return writing(work)

        made = []
        with store.reembedding(NEXT) as work:
            work.add(ids, units(3, seed=1))
            for _ in range(2):
                monkeypatch.setattr(link, "writing", late)
                assert not work.switch({})
                monkeypatch.undo()
                made.append(oid_of_index(postgres, database))
                work.add(ids[-1:], units(1, seed=20 + len(ids)))
            assert made[0] == made[1]
            assert work.switch({})
        assert [result[0].id for result in store.search(units(3, seed=1), 1)] == ids[:3]
        assert store.check() == []


def test_the_index_to_come_is_no_left_over(database: Database, postgres: Server) -> None:
    with database.create() as store:
        ids = store.add(new_rows(units(3)))
        with store.reembedding(NEXT) as work, ThreadPoolExecutor(1) as threads, psycopg.connect(postgres.dsn) as other:
            work.add(ids, units(3, seed=1))
            other.execute(f"LOCK TABLE {database.name}.images IN ROW EXCLUSIVE MODE")  # the index waits for it
            switched = threads.submit(work.switch, {})
            begun = f"SELECT 1 FROM pg_class WHERE oid = to_regclass('{database.name}.images_by_vector_next')"
            until(lambda: ask(postgres, begun))
            with database.open() as reader:
                assert reader.check() == []
            other.rollback()
            assert switched.result()


def test_searches_go_on_while_the_switch_waits_for_a_long_reader(
    database: Database, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_reembed, "RETRY_SECONDS", 0.5)
    with database.create() as store, database.open() as exporter, database.open() as reader:
        ids = store.add(new_rows(units(3)))
        link = store._link  # type: ignore[attr-defined]
        indexed, go_on, writing = threading.Event(), threading.Event(), link.writing

        def after_the_index(call: Any) -> Any:
            indexed.set()
            assert go_on.wait(60)
            return writing(call)

        with store.reembedding(NEXT) as work, ThreadPoolExecutor(2) as threads:
            work.add(ids, units(3, seed=1))
            monkeypatch.setattr(link, "writing", after_the_index)
            switched = threads.submit(work.switch, {})
            assert indexed.wait(60)
            with exporter.snapshot() as everything:
                assert len(everything) == 3
                go_on.set()
                until(lambda: ask(postgres, "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'relation'"))
                searched = threads.submit(reader.search, units(1), 1)
                assert searched.result(20)[0][0].id == ids[0]
                assert not switched.done()
            assert switched.result(60)
