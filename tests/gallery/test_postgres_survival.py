"""The store in PostgreSQL when a client, a process of the server, or the server is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from postgres_server import Server
from stores import Database

psycopg = pytest.importorskip("psycopg")
from postgres_worker import BATCHES, SIZE, batch_of, change  # noqa: E402

from lookalike.errors import InputError  # noqa: E402
from lookalike.gallery.export import export_rows  # noqa: E402
from lookalike.gallery.store.base import Store  # noqa: E402
from lookalike.gallery.store.postgres import PostgresStore  # noqa: E402

HERE = Path(__file__).parent
KILLS = int(os.environ.get("LOOKALIKE_KILLS", "2"))  # of each operation
OPERATIONS = ("add", "remove", "label", "compact", "export")


class Worker:
    """Children that change a gallery, one after the other (see `postgres_worker.py`)."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, HERE / "postgres_worker.py", dsn, folder]
        self._program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._in, self._out = self._program.stdin, self._program.stdout

    def run(self, name: str, operation: str, seed: int, seconds: float) -> list[list[str]]:
        """What a child said until it was killed, some seconds after it had opened the gallery."""
        print(name, operation, seed, file=self._in, flush=True)
        lines: list[list[str]] = []
        child = 0
        while not child or ["open"] not in lines:
            lines.append(self._out.readline().split())
            assert lines[-1], "the worker ended"
            if lines[-1][0] == "child":
                child = int(lines[-1][1])
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        while (line := self._out.readline().split()) != ["ended"]:
            lines.append(line)
        return lines

    def stop(self) -> None:
        self._in.close()
        assert self._program.wait(30) == 0


@pytest.fixture(scope="module")
def worker(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    program = Worker(postgres.dsn, tmp_path_factory.mktemp("exports"))
    yield program
    program.stop()


def states(store: Store) -> dict[int, str]:
    """The label of each batch, "-" where it is not there; it is either wholly there, of one label, or not at all."""
    found: dict[int, list[str]] = defaultdict(list)
    for row in store.rows():
        assert row.metadata == {"batch": row.metadata["batch"], "label": row.label}
        number = row.metadata["batch"]
        assert isinstance(number, int)
        found[number].append(str(row.label))
    assert all(len(labels) == SIZE and len(set(labels)) == 1 for labels in found.values())
    return {number: found[number][0] if number in found else "-" for number in range(BATCHES)}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_client_that_is_killed(operation: str, worker: Worker, database: Database, tmp_path: Path) -> None:
    chance = random.Random(operation)
    known = dict.fromkeys(range(BATCHES), "first")
    with database.create(exact_below=20) as store:
        for number in range(BATCHES):
            store.add(batch_of(number, "first"))
    for seed in range(KILLS):
        said = worker.run(database.name, operation, seed, chance.uniform(0, 0.2))
        pending: tuple[int, str] | None = None
        for words in said:
            if words[0] == "will":
                pending = int(words[1]), words[2]
            elif words[0] == "did":
                known[int(words[1])], pending = words[2], None
        with database.open(write=True, exact_below=20) as store:
            until_alone(database)  # the server ends what its client left
            found = states(store)
            if pending is not None:
                assert found[pending[0]] in (known[pending[0]], pending[1])
                known[pending[0]] = found[pending[0]]
            assert found == known
            assert all(fault.mended for fault in store.check())
            with contextlib.suppress(FileExistsError):
                assert export_rows(store, tmp_path / f"after-{seed}.parquet") == len(store)
    for path in worker.folder.glob("[0-9]*.parquet"):  # what has its name is whole
        assert pq.read_table(path).num_rows == BATCHES * SIZE
    with database.open(write=True, exact_below=20) as store:
        store.compact()
        assert store.check() == []


def until_alone(database: Database) -> None:
    """Wait until the server has no other process of this client at work."""
    end = time.monotonic() + 30
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lookalike' AND state <> 'idle'"
    with psycopg.connect(database.dsn, autocommit=True) as db:
        while db.execute(query).fetchall()[0][0]:
            assert time.monotonic() < end, "the server goes on for a client that is gone"
            time.sleep(0.01)


@pytest.mark.parametrize("victim", ["a process of the server", "the server"])
def test_a_server_that_is_killed(victim: str, database: Database, postgres: Server, tmp_path: Path) -> None:
    chance = random.Random(victim)
    messages = []
    with database.create(exact_below=20) as store:
        for number in range(BATCHES):
            store.add(batch_of(number, "first"))
        for turn, operation in enumerate(OPERATIONS):
            assert isinstance(store, PostgresStore)
            before, count = states(store), len(store)  # the second one by the connection that is to be cut
            process = store._link._alive().info.backend_pid
            number = process if victim != "the server" else postgres.process.pid  # type: ignore[union-attr]
            how = signal.SIGKILL if victim != "the server" else signal.SIGQUIT
            killer = threading.Timer(chance.uniform(0.02, 0.2), os.kill, (number, how))
            killer.start()
            draw = random.Random(turn)
            try:  # a connection that breaks between two calls is made anew, and nobody need know
                while killer.is_alive():
                    use(store, operation, draw, tmp_path)
                use(store, operation, draw, tmp_path)
            except InputError as error:
                messages.append(str(error))
            killer.join()
            if victim == "the server":
                postgres.stop(signal.SIGQUIT)
                postgres.start()
            with reopened(database) as again_open:
                after = states(again_open)
                assert all(fault.mended for fault in again_open.check())
                if operation in ("compact", "export"):
                    assert (after, len(again_open)) == (before, count)
            assert states(store) == after  # the store that was open goes on
        store.compact()
        assert store.check() == []
    assert len(messages) >= 2
    assert all("server" in message for message in messages)


def use(store: Store, operation: str, chance: random.Random, folder: Path) -> None:
    """One operation, acknowledged."""
    if operation == "compact":
        store.compact()
    elif operation == "export":
        export_rows(store, folder / f"{chance.randrange(10**12)}.parquet")
    else:
        change(store, operation, chance, turns=1)


def reopened(database: Database) -> PostgresStore:
    """The gallery once the server is up again: after a killed process it starts anew by itself."""
    end = time.monotonic() + 30
    while True:
        try:
            return database.open(write=True, exact_below=20)  # type: ignore[return-value]
        except InputError:
            assert time.monotonic() < end
            time.sleep(0.05)
