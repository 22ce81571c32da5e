"""The store in PostgreSQL with several writers, lost connections, roles, replicas and a full disk."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import Server, new_server, remove
from stores import ABOUT, Database, new_row, new_rows, units

from lookalike.errors import InputError
from lookalike.gallery.store.base import ReplacedError

psycopg = pytest.importorskip("psycopg")
from lookalike.gallery.store.postgres import PostgresStore  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "postgres.md").read_text()


def ask(dsn: str, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run SQL; what it answers."""
    with psycopg.connect(dsn, autocommit=True) as db:
        cursor = db.execute(query, parameters or None)
        return cursor.fetchall() if cursor.description else []


def end_connections(dsn: str, waiting: bool = False) -> int:
    """End every connection of a store, or only those that wait for a lock; how many."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lookalike'"
    return len(ask(dsn, query + (" AND wait_event_type = 'Lock'" if waiting else "")))


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


class Outcome(threading.Thread):
    """A call in a thread of its own, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call = call
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:
            self.result = error

    def wait(self) -> Any:
        self.join(60)
        assert not self.is_alive()
        return self.result


# Several writers


def test_writers_of_the_same_paths_leave_one_row_for_each(database: Database) -> None:
    database.create().close()
    given: list[int] = []

    def write(number: int) -> None:
        draw = random.Random(number)
        with database.open(write=True) as store:
            for turn in range(6):
                rows = [new_row(f"{i:02d}", units(1, seed=i)[0], label=f"{number}-{turn}") for i in range(40)]
                draw.shuffle(rows)
                given.extend(store.add(rows[:25]))
                store.update(given[-draw.randint(1, 20) :], "touched")
                store.remove([given[-1]])
                store.add([rows[24]])

    writers = [Outcome(lambda number=number: write(number)) for number in range(4)]
    assert [writer.wait() for writer in writers] == [None] * 4
    assert len(given) == len({*given}) == 600
    with database.open() as store:
        rows = list(store.rows())
        assert len({row.path for row in rows}) == len(rows) == len(store) <= 40
        answers = store.search(store.vectors([row.id for row in rows]), 1)
        assert [found.hits[0].path for found in answers] == [row.path for row in rows]
        assert store.check() == []


def test_a_second_writer_of_a_path_waits_and_then_replaces(database: Database, postgres: Server) -> None:
    with database.create() as first, database.open(write=True) as second:
        (old,) = first.add([new_row("a", units(1)[0])])
        with psycopg.connect(postgres.dsn) as other:
            other.execute(f"LOCK TABLE {database.name}.rejected")  # both stop between removing and adding
            adding = Outcome(lambda: first.add([new_row("a", units(1)[0], label="first"), new_row("b", units(1)[0])]))
            until(lambda: ask(postgres.dsn, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
            later = Outcome(lambda: second.add([new_row("b", units(1)[0], label="second"), new_row("a", units(1)[0])]))
            until(lambda: len(ask(postgres.dsn, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")) == 2)
        ids = adding.wait(), later.wait()
        assert len({old, *ids[0], *ids[1]}) == 5
        assert {row.path for row in first.rows()} == {"a", "b"}
        assert {row.id for row in first.rows()} in ({*ids[0]}, {*ids[1]})


# Lost connections


def test_a_connection_ended_in_the_middle_of_an_add_leaves_nothing_of_it(database: Database, postgres: Server) -> None:
    with database.create() as store:
        kept = store.add(new_rows(units(10)))
        with psycopg.connect(postgres.dsn) as other:
            other.execute(f"LOCK TABLE {database.name}.rejected")
            adding = Outcome(lambda: store.add(new_rows(units(10, seed=1), start=5)))
            until(lambda: end_connections(postgres.dsn, waiting=True))
            error = adding.wait()
        assert isinstance(error, InputError)
        assert f"#{database.name}: " in error.message
        assert [row.id for row in store.rows()] == kept  # by a new connection
        again = store.add(new_rows(units(10, seed=1), start=5))
        assert [row.id for row in store.rows()] == [*kept[:5], *again]


def test_a_connection_ended_in_the_middle_of_a_search_is_not_noticed(database: Database, postgres: Server) -> None:
    with database.create() as store:
        ids = store.add(new_rows(units(10)))
        with psycopg.connect(postgres.dsn) as other:
            other.execute(f"LOCK TABLE {database.name}.images")
            searching = Outcome(lambda: store.search(units(10), 1))
            until(lambda: end_connections(postgres.dsn, waiting=True))
        assert [found.hits[0].id for found in searching.wait()] == ids


def test_a_connection_ended_between_two_calls_is_not_noticed(database: Database, postgres: Server) -> None:
    with database.create() as store:
        ids = store.add(new_rows(units(3)))
        for use in (lambda: store.add(new_rows(units(1), start=9)), lambda: len(store), lambda: store.remove(ids[:1])):
            assert end_connections(postgres.dsn) >= 1
            assert use()
        assert len(store) == 3


def test_nothing_acknowledged_is_lost_and_nothing_is_there_twice(database: Database, postgres: Server) -> None:
    batches = 6
    stop = threading.Event()
    acknowledged: dict[str, int] = {}
    messages: list[str] = []

    def end_them() -> None:
        while not stop.wait(random.uniform(0.03, 0.15)):
            end_connections(postgres.dsn)

    with database.create() as store:
        ending = Outcome(end_them)
        for number in range(batches):
            rows = new_rows(units(50, seed=number), start=50 * number, thumbnail=b"t" * 500)
            while rows[0].path not in acknowledged:
                try:
                    acknowledged |= dict(zip([row.path for row in rows], store.add(rows), strict=True))
                except InputError as error:
                    messages.append(error.message)
        stop.set()
        assert ending.wait() is None
        assert all("connection" in message or "server" in message for message in messages)
        assert {row.path: row.id for row in store.rows()} == acknowledged
        assert len(store) == 50 * batches
        assert store.check() == []


def test_a_server_that_stops_and_comes_back(postgres: Server) -> None:
    database = Database(postgres.dsn)
    with database.create() as store:
        ids = store.add(new_rows(units(5)))
        for how in (signal.SIGINT, signal.SIGQUIT):  # the second is as a crash
            ids += store.add(new_rows(units(5), start=ids[-1]))
            postgres.stop(how)
            for use in (lambda: len(store), lambda: store.add(new_rows(units(1))), lambda: database.open()):
                with pytest.raises(InputError, match="server"):
                    use()
            postgres.start()
            assert [row.id for row in store.rows()] == ids
        assert store.check() == []


# Errors


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ann:s3cret@127.0.0.1:1/pictures",
        "host=127.0.0.1 port=1 user=ann password=s3cret dbname=pictures",
        "postgresql://ann@127.0.0.1:1/pictures?password=s3cret",
        "postgresql://ann:s3cret@nowhere.invalid/pictures",
        "postgresql://ann:s3cret@127.0.0.1:port/pictures",
        "postgresql://ann:s3cret@[::1/pictures",
        "host=127.0.0.1 password = s3cret s3cret",
        "host=127.0.0.1 colour=s3cret",
        "postgresql://ann:s3cret/db",
        "postgresql://ann:a@s3cret@127.0.0.1:1/pictures",
        "postgresql://ann:a/s3cret@127.0.0.1:1/pictures",
        "postgresql://ann@127.0.0.1:1/pictures?pass%77ord=s3cret",
    ],
)
@pytest.mark.parametrize("make", [PostgresStore.open, lambda dsn, name: PostgresStore.create(dsn, name, ABOUT)])
def test_a_server_that_is_not_there_and_no_password_in_the_message(dsn: str, make: Callable[[str, str], Any]) -> None:
    with pytest.raises(InputError) as caught:
        make(dsn, "photos")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)).replace(__file__, "")
    assert "server" in caught.value.message
    assert caught.value.remedy
    assert caught.value.__cause__ is None


def test_a_database_or_role_that_is_not_there(postgres: Server) -> None:
    with pytest.raises(InputError, match='"nothing"'):
        PostgresStore.open(postgres.dsn_of("nothing"), "photos")
    with pytest.raises(InputError, match='"nobody_such"'):
        PostgresStore.open(postgres.dsn_of(user="nobody_such"), "photos")


@pytest.fixture
def own_database(postgres: Server) -> Iterator[str]:
    """A database without pgvector that belongs to the role `owner`, who is no superuser."""
    name = Database(postgres.dsn).name
    ask(postgres.dsn, "DO $$BEGIN CREATE ROLE owner LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END$$")
    ask(postgres.dsn, f"CREATE DATABASE {name} OWNER owner")
    yield name
    ask(postgres.dsn, f"DROP DATABASE {name} WITH (FORCE)")


def test_without_the_extension_its_installation_is_named(postgres: Server, own_database: str) -> None:
    dsn = postgres.dsn_of(own_database, "owner")
    for make in (
        lambda: PostgresStore.create(dsn, "photos", ABOUT),
        lambda: PostgresStore.create(dsn, "photos", ABOUT),
    ):
        with pytest.raises(InputError, match="'vector'") as caught:
            make()
        assert "CREATE EXTENSION vector" in caught.value.remedy
        assert re.search(r"postgresql-1\d-pgvector", caught.value.remedy)
    assert ask(dsn, "SELECT 1 FROM pg_namespace WHERE nspname = 'photos'") == []


def test_where_the_server_does_not_have_the_extension_at_all(postgres: Server, own_database: str) -> None:
    control = next(postgres.programs.parent.rglob("vector.control"))
    if int(ask(postgres.dsn, "SHOW server_version_num")[0][0]) < 180000:
        pytest.skip("before PostgreSQL 18 there is one folder of extensions, which other tests use")
    assert control.is_file()
    dsn = postgres.dsn_of(own_database, options="-c extension_control_path=/nonexistent")
    with pytest.raises(InputError, match="'vector'"):
        PostgresStore.create(dsn, "photos", ABOUT)


def test_the_extension_may_be_in_any_schema(postgres: Server, own_database: str) -> None:
    ask(postgres.dsn_of(own_database), 'CREATE SCHEMA "odd one"')
    ask(
        postgres.dsn_of(own_database),
        'CREATE EXTENSION vector SCHEMA "odd one"; GRANT USAGE ON SCHEMA "odd one" TO PUBLIC',
    )
    with PostgresStore.create(postgres.dsn_of(own_database, "owner"), "photos", ABOUT, exact_below=2) as store:
        ids = store.add(new_rows(units(5)))
        assert [found.hits[0].id for found in store.search(units(5), 1)] == ids
        store.compact()
        assert store.check() == []


def test_an_old_extension_is_refused(postgres: Server, own_database: str) -> None:
    ask(postgres.dsn_of(own_database), "CREATE EXTENSION vector")
    ask(postgres.dsn_of(own_database), "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    with pytest.raises(InputError, match=r"version 0\.7\.4") as caught:
        PostgresStore.create(postgres.dsn_of(own_database, "owner"), "photos", ABOUT)
    assert "ALTER EXTENSION vector UPDATE" in caught.value.remedy


def test_roles_with_the_rights_that_the_how_to_lists(postgres: Server, own_database: str) -> None:
    superuser = postgres.dsn_of(own_database)
    ask(superuser, "CREATE EXTENSION vector")
    rights = block("sql", "CREATE ROLE photo_readers")
    with PostgresStore.create(postgres.dsn_of(own_database, "owner"), "photos", ABOUT) as owner:
        owner.add(new_rows(units(5), thumbnail=b"t"))
        ask(superuser, rights)
        ask(superuser, "CREATE ROLE ben LOGIN IN ROLE photo_readers; CREATE ROLE eve LOGIN; ")
        ask(superuser, "CREATE ROLE ann LOGIN IN ROLE photo_writers")
        try:
            for write in (False, True):
                with PostgresStore.open(postgres.dsn_of(own_database, "ben"), "photos", write) as reader:
                    assert len(reader.search(units(5), 3)) == len(list(reader.rows())) == 5
                    assert reader.check() == []
                    assert reader.facts()["rows"] == 5
            with (
                PostgresStore.open(postgres.dsn_of(own_database, "ben"), "photos", write=True) as reader,
                pytest.raises(InputError, match="#photos: "),
            ):
                reader.remove([1])
            with PostgresStore.open(postgres.dsn_of(own_database, "ann"), "photos", write=True) as writer:
                ids = writer.add(new_rows(units(5), start=3, thumbnail=b"t"))
                assert (writer.update(ids, "cat", {"x": 1}), writer.remove(ids[:2])) == (5, 2)
                writer.reject([])
                writer.forget(["x"])
                with pytest.raises(InputError, match="owner"):
                    writer.compact()
            with pytest.raises(InputError, match="schema photos"):
                PostgresStore.open(postgres.dsn_of(own_database, "eve"), "photos")
            with pytest.raises(InputError, match="database"):
                PostgresStore.create(postgres.dsn_of(own_database, "eve"), "others", ABOUT)
            owner.compact()
            assert owner.check() == []
        finally:
            ask(superuser, "DROP OWNED BY photo_readers, photo_writers, ben, eve, ann")
            ask(superuser, "DROP ROLE photo_readers, photo_writers, ben, eve, ann")


def test_one_compaction_at_a_time(database: Database, postgres: Server) -> None:
    with database.create() as store, psycopg.connect(postgres.dsn) as other:
        store.add(new_rows(units(5)))
        other.execute(f"LOCK TABLE {database.name}.images IN SHARE UPDATE EXCLUSIVE MODE")
        compacting = Outcome(store.compact)
        until(lambda: ask(postgres.dsn, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"))
        with database.open(write=True) as second, pytest.raises(InputError, match="compaction"):
            second.compact()
        other.rollback()
        assert compacting.wait() is None


def test_a_statement_that_the_server_cancels(database: Database, postgres: Server) -> None:
    database.create().close()
    dsn = postgres.dsn_of(options="-c statement_timeout=200")
    with PostgresStore.open(dsn, database.name, write=True) as store, psycopg.connect(postgres.dsn) as other:
        other.execute(f"LOCK TABLE {database.name}.images")
        with pytest.raises(InputError, match="timeout"):
            store.add(new_rows(units(1)))
        other.rollback()
        assert len(store.add(new_rows(units(1)))) == 1


def test_a_gallery_that_is_dropped_while_it_is_open(database: Database, postgres: Server) -> None:
    with database.create() as store:
        ask(postgres.dsn, f"DROP SCHEMA {database.name} CASCADE")
        for use in (lambda: len(store), lambda: store.add(new_rows(units(1))), lambda: list(store.rows()), store.facts):
            with pytest.raises(InputError, match=f"#{database.name}: "):
                use()


def test_the_same_name_in_a_server_that_was_set_up_anew_is_another_gallery(database: Database) -> None:
    with database.create() as store:
        assert isinstance(store, PostgresStore)
        assert len(store) == 0
        assert store._link._identity is not None
        server, table, model = store._link._identity
        assert server
        store._link._identity = server + 1, table, model  # tables of a new server have the same numbers
        with pytest.raises(ReplacedError):
            len(store)


# The server's disk


def test_damaged_pages_are_reported(postgres: Server) -> None:
    database = Database(postgres.dsn)
    with database.create() as store:
        store.add(new_rows(units(200)))
        (file,) = ask(postgres.dsn, "SELECT pg_relation_filepath(%s::regclass)", f"{database.name}.images")[0]
        ask(postgres.dsn, "CHECKPOINT")
        postgres.stop()
        with (postgres.folder / "data" / file).open("r+b") as pages:
            pages.seek(8192 + 5000)
            pages.write(b"\xff\x00\xff")
        postgres.start()
        faults = [fault.what for fault in store.check()]
        assert len(faults) == 1
        assert "invalid page" in faults[0]
        with pytest.raises(InputError, match=f"#{database.name}: "):
            store.search(units(1), 3)
    ask(postgres.dsn, f"DROP SCHEMA {database.name} CASCADE")  # a damaged server lets nobody copy it


@pytest.fixture
def small_disk(postgres: Server, tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB that the server can write to."""
    folder = postgres.folder / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", folder], capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("needs the right to mount a small disk")
    try:
        postgres.own(folder)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(postgres: Server, small_disk: Path) -> None:
    ask(postgres.dsn, f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    database = Database(postgres.dsn_of(options="-c default_tablespace=small"))
    with database.create() as store:
        kept: list[int] = []

        def fill() -> None:
            for number in range(100):
                kept.extend(store.add(new_rows(units(20, seed=number), 20 * number, thumbnail=os.urandom(20_000))))

        with pytest.raises(InputError, match="disk"):
            fill()
        assert kept
        assert [row.id for row in store.rows()] == kept
        assert store.check() == []
        subprocess.run(["mount", "-o", "remount,size=24m", small_disk], check=True)
        more = store.add(new_rows(units(20), start=5000, thumbnail=os.urandom(20_000)))
        assert store.remove(kept[:-20]) == len(kept) - 20
        store.compact()
        assert [row.id for row in store.rows()] == [*kept[-20:], *more]
    ask(postgres.dsn, f"DROP SCHEMA {database.name} CASCADE")
    ask(postgres.dsn, "DROP TABLESPACE small")


# A replica


@pytest.mark.slow
def test_a_replica_answers_and_refuses_changes(postgres: Server) -> None:
    replica = Server(Path(f"{postgres.folder}-r"), postgres.programs)
    replica.folder.mkdir(mode=0o755)
    try:
        replica.own(replica.folder)
        source = ["-h", postgres.folder, "-U", "postgres"]
        replica.run("pg_basebackup", *source, "-D", replica.folder / "data", "-R", "-X", "stream", "-c", "fast", "-N")
        replica.start()
        database, copy = Database(postgres.dsn), Database(replica.dsn)
        copy.name = database.name
        with database.create(exact_below=20) as store:
            ids = store.add(new_rows(units(100)))
            (end,) = ask(postgres.dsn, "SELECT pg_current_wal_lsn()::text")[0]
            until(lambda: ask(replica.dsn, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", end)[0][0])
            with copy.open(exact_below=20) as reader:
                answers = reader.search(units(100), 1)
                assert [found.hits[0].id for found in answers] == ids
                assert not answers[0].exact
                assert reader.check() == []
                assert list(reader.rows()) == list(store.rows())
            with copy.open(write=True) as writer:
                for change in (lambda: writer.add(new_rows(units(1))), writer.compact):
                    with pytest.raises(InputError, match="replica"):
                        change()
            both = f"host='{replica.folder},{postgres.folder}' dbname=postgres user=postgres"
            with PostgresStore.open(f"{both} target_session_attrs=read-write", database.name, write=True) as writer:
                assert writer.remove(ids[:1]) == 1
    finally:
        remove(replica)


@pytest.mark.slow
def test_a_dump_restores_into_another_server(postgres: Server, database: Database, tmp_path: Path) -> None:
    with database.create(exact_below=20) as store:
        ids = store.add(new_rows(units(100), thumbnail=b"t", metadata={"x": 1}))
        rows = list(store.rows())
    other = new_server(postgres.programs)
    try:
        dump = other.folder / "photos.dump"
        other.run("pg_dump", "--format=custom", f"--schema={database.name}", f"--file={dump}", postgres.dsn)
        ask(other.dsn, "CREATE EXTENSION vector")
        other.run("pg_restore", f"--dbname={other.dsn}", "--no-owner", dump)
        with PostgresStore.open(other.dsn, database.name, write=True, exact_below=20) as restored:
            assert list(restored.rows()) == rows
            assert restored.check() == []
            assert min(restored.add(new_rows(units(1), start=500))) > max(ids)
    finally:
        remove(other)


def block(kind: str, word: str) -> str:
    """The one block of the how-to that has this word in it."""
    (found,) = [text for text in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S) if word in text]
    return found


@pytest.mark.slow
def test_going_back_to_a_moment_as_the_how_to_says(postgres: Server) -> None:
    server = new_server(postgres.programs)
    backup, data = server.folder / "backup", server.folder / "data"
    try:
        for folder in (backup, backup / "wal"):
            folder.mkdir(mode=0o755)
            server.own(folder)
        for line in block("sql", "archive_command").splitlines():
            ask(server.dsn, line.partition("  --")[0].replace("/backup", str(backup)))
        server.stop()
        server.start()
        database = Database(server.dsn)
        with database.create(exact_below=20) as store:
            before = store.add(new_rows(units(50)))
            copying, checking = block("console", "pg_verifybackup").replace("/backup", str(backup)).splitlines()
            server.run(*copying.split(), "-d", server.dsn, "--no-sync")
            if postgres.programs.parent.name != "pginstall18":  # whose pg_verifybackup crashes on --version already
                server.run(*checking.split())
            since = store.add(new_rows(units(50, seed=1), start=50))
            (moment,) = ask(server.dsn, "SELECT now()::text")[0]
            store.remove(before)  # what should not have happened
            ask(server.dsn, "SELECT pg_switch_wal()")
        server.stop()
        shutil.rmtree(data)
        script = block("console", "recovery.signal").replace("2026-03-01 12:00:00+00", moment)
        script = script.replace("/var/lib/postgresql/18/main", str(data)).replace("/backup/", f"{backup}/")
        subprocess.run(["bash", "-ec", script], check=True)
        if os.geteuid() == 0:
            server.own(data / "recovery.signal")
        server.start()
        until(lambda: not ask(server.dsn, "SELECT pg_is_in_recovery()")[0][0])
        with database.open(write=True, exact_below=20) as store:
            assert [row.id for row in store.rows()] == [*before, *since]
            assert store.check() == []
            assert min(store.add(new_rows(units(1), start=500))) > max(since)
    finally:
        remove(server)
