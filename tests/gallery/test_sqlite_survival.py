"""The store in a folder under kills, full disks, read-only folders and many readers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from sqlite_items import ABOUT, made, rows_of, vectors_of

from lookalike.errors import InputError
from lookalike.gallery.store.base import NewItem
from lookalike.gallery.store.sqlite import SqliteStore

HERE = Path(__file__).parent
KILLS = 30
ROWS, BATCH, EXACT_BELOW = 2000, 20, 64


class Adder:
    """Children that add rows, one after the other (see `sqlite_adder.py`)."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, HERE / "sqlite_adder.py", folder, *map(str, (ROWS, BATCH, EXACT_BELOW))]
        self._program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._in, self._out = self._program.stdin, self._program.stdout

    def run(self, seconds: float | None) -> tuple[set[str], bool]:
        """Paths that a child acknowledged until it was killed after some seconds, and whether it was done before."""
        print("go", file=self._in, flush=True)
        lines: list[str] = []
        child = 0
        while not child:
            line = self._out.readline().split()
            if line[0] == "child":
                child = int(line[1])
            else:
                lines.append(" ".join(line))
        if seconds is not None:
            time.sleep(seconds)
            with suppress(ProcessLookupError):  # it may have been done before
                os.kill(child, signal.SIGKILL)
        while (text := self._out.readline().strip()) != "ended":
            lines.append(text)
        return {line.split()[1] for line in lines if line.startswith("kept ") and len(line) == 15}, "done" in lines

    def stop(self) -> None:
        self._in.close()
        assert self._program.wait(30) == 0


@pytest.fixture
def adder(tmp_path: Path) -> Iterator[Adder]:
    SqliteStore.create(tmp_path / "g", ABOUT, exact_below=EXACT_BELOW).close()
    program = Adder(tmp_path / "g")
    yield program
    program.stop()


@pytest.mark.slow
def test_kills_lose_nothing(adder: Adder, tmp_path: Path) -> None:
    folder, chance = tmp_path / "g", random.Random(0)
    kept: set[str] = set()
    interrupted = 0
    for _ in range(KILLS):
        acknowledged, done = adder.run(chance.uniform(0, 0.15))
        interrupted += not done
        kept |= acknowledged
        start = time.perf_counter()
        with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
            there = [row.path for row in store.rows()]
        assert time.perf_counter() - start < 2
        assert len(there) == len(set(there))
        assert kept <= set(there)
        if done:  # enough was added: begin again, so that every kill hits something
            with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as store:
                store.remove([row.id for row in store.rows()])
            kept.clear()
    assert interrupted >= KILLS // 2
    _, done = adder.run(None)
    assert done
    vectors = vectors_of(ROWS)
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
        rows = list(store.rows())
        assert sorted(row.path for row in rows) == [row.path for row in rows_of(vectors)]
        right = vectors[[int(row.digest) for row in rows]]
        assert np.abs(store.vectors([row.id for row in rows]) - right).max() < 1e-3
        assert store.check() == []
        assert store.measure_recall() >= 0.99
    assert not list(folder.glob(".*"))


READER = """
import json, sys, time
from sqlite_items import recall, vectors_of
from lookalike.gallery.store.sqlite import SqliteStore
folder, exact_below = sys.argv[1], int(sys.argv[2])
queries = vectors_of(4, seed=5)
searches, counts, recalls, stale = 0, set(), [], 0
with SqliteStore.open(folder, exact_below=exact_below) as store:
    print("ready", flush=True)
    while store.about and not store.by_path(["end.jpg"]):
        if searches == 5:
            print("searching", flush=True)
        batches = {}
        for row in store.rows():
            if row.path != "end.jpg":  # it may come between the look at the end and this one
                batches.setdefault(int(row.digest) // 50, []).append(row)
        if parts := {number: len(rows) for number, rows in batches.items() if len(rows) not in (25, 50)}:
            raise SystemExit(f"parts of batches were seen: {parts}")
        found = store.search(queries, 10)
        for one in found:
            ids = [hit.id for hit in one.hits]
            if len(ids) != min(10, len(set(ids))):
                raise SystemExit("an id twice")
        recalls.append(store.measure_recall(10, 20, searches))
        counts.add(len(store))
        searches += 1
print(json.dumps({"searches": searches, "counts": len(counts), "recall": sum(recalls) / len(recalls)}))
"""


@pytest.mark.slow
def test_readers_see_whole_batches_while_the_writer_adds_removes_and_compacts(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    vectors = vectors_of(1600)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", READER, str(folder), "300"]
    with SqliteStore.create(folder, ABOUT, exact_below=300) as store:
        readers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
            for _ in range(2)
        ]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        gone: list[int] = []
        for start in range(0, 1100, 50):
            ids = store.add(rows_of(vectors[start : start + 50], start))
            if start % 100:  # half of every second batch goes again
                store.remove(ids[::2])
                gone += ids[::2]
            if start % 700 == 0:
                store.compact()
        for start in range(1100, 1600, 50):
            store.add(rows_of(vectors[start : start + 50], start))
        store.compact()
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "searching\n"
        store.add([NewItem("end.jpg", b"0", vectors[0])])
        for reader in readers:
            out, err = reader.communicate(timeout=60)
            assert reader.returncode == 0, err
            said = json.loads(out)
            assert said["searches"] >= 5
            assert said["recall"] >= 0.99
        assert all(row is None for row in store.get(gone))


def test_a_reader_takes_up_every_change(tmp_path: Path) -> None:
    folder, query = tmp_path / "g", vectors_of(1, seed=5)[0]
    with made(folder, 500, exact_below=100) as store, SqliteStore.open(folder, exact_below=100) as reader:
        for step in range(12):
            (best, second) = reader.search(query, 2)[0].hits
            store.remove([best.id])
            assert reader.search(query, 1)[0].hits[0].id == second.id
            assert reader.get([best.id]) == [None]
            (new,) = store.add(rows_of(vectors_of(1, seed=5), 1000 + step))
            if step % 3 == 2:
                store.compact()
            hits = reader.search(query, 2)[0].hits
            assert hits[0].id == new
            store.update([new], f"step {step}")
            assert reader.search(query, 1, filter={"label": f"step {step}"})[0].hits[0].id == new


def fill(store: SqliteStore, start: int) -> tuple[int, str]:
    """Add batches until the disk takes no more: how many rows were acknowledged, and what the error said."""
    vectors = vectors_of(20_000)
    while start < len(vectors):
        try:
            store.add(rows_of(vectors[start : start + 100], start))
        except InputError as error:
            return start, error.message
        start += 100
    raise AssertionError("the disk is not full")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs the superuser")
@pytest.mark.parametrize("exact_below", [10_000, 500])
def test_a_full_disk_loses_nothing(small_disk: Path, exact_below: int) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    with SqliteStore.create(small_disk / "g", ABOUT, exact_below=exact_below) as store:
        kept, said = fill(store, 0)
        assert "gallery.db: " in said
        assert kept
        assert [row.path for row in store.rows()] == [f"{n:06}.jpg" for n in range(kept)]
        assert len(store.search(vectors_of(3), 5)[0].hits) == 5
        ballast.unlink()
        more = rows_of(vectors_of(200, seed=3), 50_000)
        assert len(store.add(more)) == 200
        assert [fault for fault in store.check() if not fault.mended] == []
    with SqliteStore.open(small_disk / "g", exact_below=exact_below) as store:
        assert len(store) == kept + 200


def test_a_quota_is_an_error_that_says_so(tmp_path: Path) -> None:
    """As above where nothing can be mounted: a limit on the size of files, in a process of its own."""
    code = """
import resource, sys
from pathlib import Path
from sqlite_items import ABOUT, rows_of, vectors_of
from test_sqlite_survival import fill
from lookalike.gallery.store.sqlite import SqliteStore
with SqliteStore.create(Path(sys.argv[1]), ABOUT, exact_below=500) as store:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, most))
    kept, said = fill(store, 0)
    print(said)
    assert [row.path for row in store.rows()] == [f"{n:06}.jpg" for n in range(kept)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    store.add(rows_of(vectors_of(100, seed=3), 50_000))
    assert len(store) == kept + 100
    faults = store.check()
    assert all(fault.mended for fault in faults), faults
    print("went on")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, str(tmp_path / "g")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "gallery.db: " in done.stdout
    assert done.stdout.endswith("went on\n")


def in_a_closed_folder(folder: Path, code: str) -> str:
    """What a program prints that may not write there; as another user where this one is the superuser."""
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    program = "import os\nfrom lookalike.gallery.store.sqlite import SqliteStore\nfrom sqlite_items import vectors_of\n"
    program += "from lookalike.gallery.store import vector_search\nfrom lookalike.errors import InputError\n"
    program += "if os.geteuid() == 0:\n    os.setgid(65534)\n    os.setuid(65534)\n" + code
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, env=environment, check=False
        )
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder that other users may enter."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    return tmp_path


READ = """
import sys
with SqliteStore.open(sys.argv[1], exact_below=100) as store:
    found = store.search(vectors_of(2), 3)
    assert [len(one.hits) for one in found] == [3, 3] and not found[0].exact
    assert len(list(store.rows())) == len(store) == 300 and store.check() == []
try:
    SqliteStore.open(sys.argv[1], write=True)
except InputError as error:
    print(error)
"""


def test_a_folder_that_may_not_be_entered_is_named(public: Path) -> None:
    folder = public / "g"
    SqliteStore.create(folder, ABOUT).close()
    public.chmod(0o700)
    code = "import sys\ntry:\n    SqliteStore.open(sys.argv[1])\nexcept InputError as error:\n    print(error)\n"
    if os.geteuid() == 0:  # else nobody else is there to be kept out
        assert f"{folder}: " in in_a_closed_folder(folder, code)


def test_a_folder_that_cannot_be_written_can_be_searched(public: Path) -> None:
    folder = public / "g"
    made(folder, 300, exact_below=100).close()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert str(folder) in in_a_closed_folder(folder, READ)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_it_can_also_while_its_writer_has_it_open(public: Path) -> None:
    folder = public / "g"
    with made(folder, 300, exact_below=100) as store:
        assert str(folder) in in_a_closed_folder(folder, READ)
        assert len(store) == 300
