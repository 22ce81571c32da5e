"""The store in PostgreSQL: query plans, limits, names, and damage."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres_server import Server
from stores import ABOUT, Database, new_row, new_rows, units

from lookalike.errors import InputError
from lookalike.gallery.store.base import NewItem

psycopg = pytest.importorskip("psycopg")
from lookalike.gallery.store.postgres import PostgresStore  # noqa: E402

WIDE = 24
COUNT = 1200
RARE = 60  # one row in so many

# The planner of a small table would rather sort the few rows of a rare label than ask the index.
INDEX_ONLY = "-c enable_sort=off -c enable_bitmapscan=off"


def ask(server: Server, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run SQL as the superuser; what it answers."""
    with psycopg.connect(server.dsn, autocommit=True) as db:
        cursor = db.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def many(postgres: Server) -> Database:
    """A gallery of 1,200 rows, of which 20 have the label "rare"."""
    database = Database(postgres.dsn)
    vectors = units(COUNT, WIDE)
    with database.create(replace(ABOUT, dim=WIDE)) as store:
        rows = new_rows(vectors)
        store.add([replace(row, label="usual" if i % RARE else "rare") for i, row in enumerate(rows)])
        store.compact()  # the planner knows the tables then
    return database


def plan(store: PostgresStore, k: int, filter: Any = None, *, exact: bool = False) -> str:
    """What the server does for a search."""
    searcher = store._searcher
    statement, parameters = searcher.statement(units(1, WIDE)[0], k, filter, exact=exact)

    def work(db: Any) -> str:
        db.execute(f"SET LOCAL enable_seqscan = {'DEFAULT' if exact else 'off'}")
        explained = psycopg.sql.SQL("EXPLAIN ANALYZE {}").format(statement)
        return "\n".join(line for (line,) in db.execute(explained, parameters))

    return store._link.reading(work, searcher.settings(k))


def test_approximate_search_uses_the_index_and_exact_search_does_not(many: Database) -> None:
    with many.open(exact_below=100) as store:
        assert "Index Scan using images_by_vector" in plan(store, 10)
        assert "images_by_vector" not in plan(store, 10, exact=True)


def test_a_search_through_the_index_goes_on_until_the_rare_are_found(many: Database, postgres: Server) -> None:
    forced = PostgresStore.open(postgres.dsn_of(options=INDEX_ONLY), many.name, exact_below=0)
    queries = units(10, WIDE, seed=6)
    filter = {"label": "rare"}
    with forced as store:
        assert "Index Scan using images_by_vector" in plan(store, 6, filter)
        near, right = (store.search(queries, 6, filter=filter, exact=exact) for exact in (False, True))
        assert [found.exact for found in near] == [False] * 10
        same = [len({hit.id for hit in a.hits} & {hit.id for hit in b.hits}) for a, b in zip(near, right, strict=True)]
        assert {len(found.hits) for found in near} == {6}
        assert np.mean(same) >= 5.8
        (all_of_them,) = store.search(queries[:1], 40, filter=filter)  # there are 20: the index cannot know that
        assert (len(all_of_them.hits), all_of_them.exact) == (20, True)


def test_few_that_pass_are_compared_one_by_one(many: Database) -> None:
    with many.open(exact_below=100) as store:
        (rare,) = store.search(units(1, WIDE), 6, filter={"label": "rare"})
        (usual,) = store.search(units(1, WIDE), 6, filter={"label": "usual"})
        assert (rare.exact, usual.exact) == (True, False)


def test_two_threads_with_a_store_each_search_at_once(many: Database) -> None:
    answers: list[list[str]] = []

    def work() -> None:
        with many.open(exact_below=100) as store:
            answers.append([found.hits[0].path for found in store.search(units(COUNT, WIDE)[:20], 1)])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [answers[0]] * 3


def test_many_values_over_large_metadata_take_little_memory(database: Database) -> None:
    """Compared one by one, each row of 100 kB would be unpacked 2,000 times and kept so: 200 MB."""
    big = [np.random.default_rng(number).bytes(50_000).hex() for number in range(10)]
    with database.create() as store:
        store.add([new_row(str(i), v, metadata={"k": i, "big": big[i % 10]}) for i, v in enumerate(units(30))])
    with database.open() as store:
        assert store.count({"k": list(range(20, 2020))}) == 10
        assert isinstance(store, PostgresStore)
        status = Path(f"/proc/{store._link._alive().info.backend_pid}/status")
        if not status.exists():
            pytest.skip("needs /proc to see how much memory a process has used")
        (peak,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        assert int(peak) < 120_000  # kB, of which the server's shared 32 MB are a part


@pytest.mark.parametrize("dim", [2500, 3500, 4000])
def test_long_vectors_are_indexed(database: Database, dim: int) -> None:
    with database.create(replace(ABOUT, dim=dim), exact_below=2) as store:
        ids = store.add(new_rows(units(5, dim), label="x" * 1000, thumbnail=b"t" * 4000))
        assert [found.hits[0].id for found in store.search(units(5, dim), 1)] == ids
        assert not store.search(units(5, dim), 1)[0].exact
        assert store.check() == []


def test_longer_ones_are_kept_and_never_indexed(database: Database) -> None:
    with database.create(replace(ABOUT, dim=4001), exact_below=2) as store:
        ids = store.add(new_rows(units(5, 4001)))
        answers = store.search(units(5, 4001), 1)
        assert [(found.hits[0].id, found.exact) for found in answers] == [(id, True) for id in ids]
        store.compact()
        assert store.check() == []
        assert store.facts()["covered by the approximate index"] == 0
        assert store.measure_recall() == 1.0


def test_the_longest_are_refused(database: Database) -> None:
    with pytest.raises(InputError, match="16001"):
        database.create(replace(ABOUT, dim=16_001))


@pytest.mark.parametrize("name", ["my photos", 'a"b', "Größe", "select", "{}", "x" * 63])
def test_any_text_is_a_name(postgres: Server, name: str) -> None:
    with PostgresStore.create(postgres.dsn, name, ABOUT) as store:
        store.add(new_rows(units(2), metadata={"x": 1}, thumbnail=b"t"))
        assert store.search(units(1), 1)[0].hits[0].id == 1
        store.compact()
        assert store.check() == []
    assert ask(postgres, "SELECT count(*) FROM pg_namespace WHERE nspname = %s", name) == [(1,)]


@pytest.mark.parametrize("name", ["", " a", "%s", "pg_photos", "PG_x", "a\nb", "a\0b", "x" * 64, "é" * 32, "\udcff"])
def test_a_name_that_cannot_be_a_schema(postgres: Server, name: str) -> None:
    for make in (
        lambda: PostgresStore.create(postgres.dsn, name, ABOUT),
        lambda: PostgresStore.open(postgres.dsn, name),
    ):
        with pytest.raises(InputError, match=re.escape(repr(name))):
            make()


def test_a_wrong_name_is_told_the_nearest(postgres: Server) -> None:
    PostgresStore.create(postgres.dsn, "holidays-2012", ABOUT).close()
    with pytest.raises(InputError, match=r"holidays-2021.*holidays-2012"):
        PostgresStore.open(postgres.dsn, "holidays-2021")


def test_a_schema_that_is_no_gallery(postgres: Server) -> None:
    with pytest.raises(InputError, match="#public"):
        PostgresStore.create(postgres.dsn, "public", ABOUT)
    with pytest.raises(InputError, match="'public'"):
        PostgresStore.open(postgres.dsn, "public")


def test_a_newer_format_is_refused(database: Database, postgres: Server) -> None:
    database.create().close()
    ask(postgres, f"UPDATE {database.name}.gallery SET format = 2")
    with pytest.raises(InputError, match="format 2") as caught:
        database.open()
    assert "pip install --upgrade" in caught.value.remedy


def test_one_of_two_that_make_the_same_gallery_does(postgres: Server) -> None:
    for attempt in range(2):
        database, outcomes = Database(postgres.dsn), []
        start = threading.Barrier(2)

        def work(database: Database = database, outcomes: list[str] = outcomes, start: Any = start) -> None:
            start.wait()
            try:
                database.create().close()
                outcomes.append("made")
            except InputError as error:
                outcomes.append(error.message.partition("#")[2].partition(": ")[2])

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count("made") == 1, (attempt, outcomes)
        assert len(outcomes) == 2


@pytest.mark.parametrize(
    "row",
    [
        new_row("".join(chr(i) for i in np.random.default_rng(0).integers(33, 127, 4000)), units(1)[0]),
        new_row("a\0b", units(1)[0]),
        new_row("a", units(1)[0], label="\0"),
        new_row("a", units(1)[0], metadata={"x": "\0"}),
        new_row("a", units(1)[0], metadata={"x": "\ud800"}),
    ],
)
def test_what_cannot_be_stored_is_refused(database: Database, row: NewItem) -> None:
    with database.create() as store:
        with pytest.raises(InputError, match=f"#{database.name}: "):
            store.add([new_row("before", units(1)[0]), row])
        assert len(store) == 0
        assert len(store.add([new_row("after", units(1)[0])])) == 1


def test_damage_of_a_vector_or_thumbnail_is_noticed_and_named(database: Database, postgres: Server) -> None:
    with database.create() as store:
        store.add(new_rows(units(6), thumbnail=b"t"))
        ask(
            postgres,
            f"UPDATE {database.name}.images SET vector = i.vector FROM {database.name}.images i"
            " WHERE i.id = 1 AND images.id = 2",
        )
        ask(postgres, f"UPDATE {database.name}.thumbnails SET jpeg = 'x' WHERE id = 3")
        vector, thumbnail = (problem.what for problem in store.check())
        assert vector.startswith("00001.jpg: ")
        assert "id 2" in vector
        assert thumbnail.startswith("00002.jpg: ")
        assert "id 3" in thumbnail
        with pytest.raises(InputError, match=r"vector .*2"):
            store.vectors([1, 2])
        with pytest.raises(InputError, match=r"thumbnail .*3"):
            store.thumbnail(3)
        store.add(new_rows(units(6)[1:3], start=1))
        assert store.check() == []


def make_invalid(server: Server, index: str) -> None:
    """Leave an index as a build that was cut short does."""
    ask(server, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", index)


def test_a_missing_or_broken_index_is_noticed_and_made_anew(database: Database, postgres: Server) -> None:
    with database.create(exact_below=20) as store:
        store.add(new_rows(units(100), label="a", metadata={"x": 1}))
        ask(postgres, f"DROP INDEX {database.name}.images_by_vector")
        ask(postgres, f"DROP INDEX {database.name}.images_by_label")
        make_invalid(postgres, f"{database.name}.images_by_metadata")
        ask(postgres, f"CREATE INDEX images_by_vector_ccnew ON {database.name}.images (size)")
        make_invalid(postgres, f"{database.name}.images_by_vector_ccnew")
        faults = store.check()
        names = ("images_by_label", "images_by_metadata", "images_by_vector", "images_by_vector_ccnew")
        assert sorted(fault.what.split()[1] for fault in faults) == [f"{database.name}.{name}" for name in names]
        assert all(fault.mended and "compact" in fault.remedy for fault in faults)
        near, right = (store.search(units(5, seed=1), 10, exact=exact, filter={"x": 1}) for exact in (False, True))
        assert [found.hits for found in near] == [found.hits for found in right]
        store.compact()
        assert store.check() == []
        assert store.facts()["covered by the approximate index"] == 100


def test_an_index_that_finds_the_wrong_rows_is_noticed(database: Database, postgres: Server) -> None:
    with database.create(exact_below=20) as store:
        store.add(new_rows(units(100)))
        ask(postgres, f"DROP INDEX {database.name}.images_by_vector")
        ask(  # an index of other vectors under its name
            postgres,
            f"CREATE INDEX images_by_vector ON {database.name}.images USING hnsw (vector halfvec_ip_ops)"
            " WHERE path = '00001.jpg'",
        )
        ask(
            postgres,
            f"UPDATE pg_index SET indpred = NULL WHERE indexrelid = '{database.name}.images_by_vector'::regclass",
        )
        (fault,) = store.check()
        assert "images_by_vector" in fault.what
        assert fault.mended
        ask(postgres, f"DROP INDEX {database.name}.images_by_vector")
        store.compact()
        assert store.check() == []


def test_durability_is_asked_of_a_server_that_would_not_give_it(database: Database, postgres: Server) -> None:
    database.create().close()
    ask(postgres, f"CREATE TABLE {database.name}.seen (setting text)")
    ask(
        postgres,
        f"CREATE FUNCTION {database.name}.see() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN INSERT INTO {database.name}.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$",
    )
    ask(postgres, f"CREATE TRIGGER see AFTER INSERT ON {database.name}.images EXECUTE FUNCTION {database.name}.see()")
    for asked, given in (("off", "on"), ("remote_apply", "remote_apply"), ("local", "local")):
        dsn = postgres.dsn_of(options=f"-c synchronous_commit={asked}")
        with PostgresStore.open(dsn, database.name, write=True) as store:
            store.add(new_rows(units(1)))
        assert ask(postgres, f"DELETE FROM {database.name}.seen RETURNING setting") == [(given,)]


def test_without_psycopg_its_installation_is_named() -> None:
    code = (
        "import sys\nsys.modules['psycopg'] = None\n"
        "from lookalike.gallery.store.location import open_store, parse_location\n"
        "from lookalike.errors import InputError\n"
        "try:\n    open_store(parse_location('postgresql://ann:secret@db/pictures#photos'))\n"
        "except InputError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "psycopg" in done.stdout
    assert "pip install" in done.stdout
    assert "[postgres]" in done.stdout
    assert "secret" not in done.stdout


def test_psycopg_is_loaded_only_when_it_is_needed() -> None:
    code = "import sys, lookalike.gallery.gallery, lookalike.gallery.store.location; print('psycopg' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
