"""Galleries in a folder that were made to do harm: each is refused with the name of a file, or does none."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlite_items import DIM, made, rows_of, vectors_of

from lookalike.errors import InputError
from lookalike.gallery.duplicates import find_duplicates
from lookalike.gallery.export import export_rows
from lookalike.gallery.store.common import checksum
from lookalike.gallery.store.index_files import Generation
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.gallery.store.sqlite_rows import checksum_of_record

EXACT_BELOW = 100
ROWS = 200
QUERIES = vectors_of(5, seed=5)
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"

Change = Callable[[Path, sqlite3.Connection], None]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed gallery with a graph."""
    folder = tmp_path_factory.mktemp("kept") / "g"
    made(folder, ROWS, exact_below=EXACT_BELOW).close()
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(kept, tmp_path / "g")
    return tmp_path / "g"


def changed(folder: Path, change: Change) -> None:
    """Change a closed gallery."""
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    change(folder, db)
    db.close()


def sql(*statements: str) -> Change:
    def change(_: Path, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            db.execute(statement)

    return change


def generation(**values: Any) -> Change:
    """Change the record of the index files."""

    def change(_: Path, db: sqlite3.Connection) -> None:
        tree = json.loads(db.execute("SELECT generation FROM meta").fetchone()[0]) | values
        db.execute("UPDATE meta SET generation = ?", (json.dumps(tree),))

    return change


def about(**values: Any) -> Change:
    """Change what the gallery was created with."""

    def change(_: Path, db: sqlite3.Connection) -> None:
        tree = json.loads(db.execute("SELECT about FROM meta").fetchone()[0]) | values
        db.execute("UPDATE meta SET about = ?", (json.dumps(tree),))

    return change


def loosened(table: str, then: Change) -> Change:
    """Make a change to a table that is not strict, and declare the table as strict again."""

    def change(folder: Path, db: sqlite3.Connection) -> None:
        (said,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        loose = said.replace(" STRICT, WITHOUT", " WITHOUT").removesuffix(" STRICT").replace(" NOT NULL", "")
        for words in (loose, said):
            db.execute("PRAGMA writable_schema = ON")
            db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (words, table))
            db.execute(f"PRAGMA schema_version = {db.execute('PRAGMA schema_version').fetchone()[0] + 1}")
            db.close()
            db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
            if words is loose:
                then(folder, db)

    return change


def row(**values: Any) -> Change:
    """Change values of item 3, with a matching checksum."""

    def change(_: Path, db: sqlite3.Connection) -> None:
        columns = ("id", "path", "digest", "size", "modified", "label", "metadata", "look")
        found = db.execute(f"SELECT {', '.join(columns)} FROM images WHERE id = 3").fetchone()
        record = dict(zip(columns, found, strict=True)) | values
        sets = ", ".join(f"{key} = ?" for key in record)
        db.execute(f"UPDATE images SET {sets} WHERE id = 3", tuple(record.values()))
        # what SQLite made of them: a whole float may have become an integer
        kept = db.execute(f"SELECT {', '.join(columns)} FROM images WHERE id = ?", (record["id"],)).fetchone()
        db.execute("UPDATE images SET checksum = ? WHERE id = ?", (checksum_of_record(kept), record["id"]))

    return change


def vector(numbers: Any) -> Change:
    """Change the vector of item 3, with a matching checksum."""

    def change(_: Path, db: sqlite3.Connection) -> None:
        data = np.asarray(numbers, "<f2").tobytes()
        db.execute("UPDATE vectors SET vector = ?, checksum = ? WHERE id = 3", (data, checksum(3, data)))

    return change


def derived(kind: str, forge: Callable[[bytes], bytes]) -> Change:
    """Change the bytes of an index file, with a matching length and checksum."""

    def change(folder: Path, db: sqlite3.Connection) -> None:
        (path,) = folder.glob(f"{kind}-*")
        data = forge(path.read_bytes())
        path.write_bytes(data)
        tree = json.loads(db.execute("SELECT generation FROM meta").fetchone()[0])
        tree["files"][path.name] = [len(data), zlib.crc32(data)]
        db.execute("UPDATE meta SET generation = ?", (json.dumps(tree),))

    return change


def ids_where(place: int, value: int) -> Callable[[bytes], bytes]:
    def forge(data: bytes) -> bytes:
        ids = np.frombuffer(data[ROWS * DIM * 2 :], "<i8").copy()
        ids[place] = value
        return data[: ROWS * DIM * 2] + ids.tobytes()

    return forge


def numbers_at(place: int, kind: str, *values: int) -> Callable[[bytes], bytes]:
    """Change numbers in the file of a graph, at an offset from the end of its vectors."""

    def forge(data: bytes) -> bytes:
        first = 8 + ROWS * DIM + place
        new = np.array(values, kind).tobytes()
        return data[:first] + new + data[first + len(new) :]

    return forge


def used(folder: Path, out: Path) -> list[str]:
    """Use every method of a store; return the messages of all errors and problems."""

    def search(store: SqliteStore, **how: Any) -> None:
        for found in store.search(QUERIES, **how):
            assert np.isfinite([hit.score for hit in found.hits]).all()

    reading: list[Callable[[SqliteStore], object]] = [
        SqliteStore.check,
        SqliteStore.facts,
        SqliteStore.__len__,
        lambda store: list(store.rows()),
        lambda store: list(store.rows(filter={"label": "class 3"})),
        search,
        lambda store: search(store, filter={"even": True}),
        lambda store: search(store, exact=True),
        lambda store: store.get(range(1, 10)),
        lambda store: store.by_path(["000002.jpg", "000007.jpg"]),
        lambda store: [store.thumbnail(id) for id in (1, 2, 3)],
        lambda store: store.vectors([1, 2, 3]),
        lambda store: store.labels(5),
        SqliteStore.rejected,
        SqliteStore.measure_recall,
        find_duplicates,
        lambda store: export_rows(store, out),
    ]
    writing: list[Callable[[SqliteStore], object]] = [
        SqliteStore.check,
        lambda store: store.update([3], "other", {"n": 3}),
        lambda store: store.add(rows_of(vectors_of(80, seed=9), ROWS)),
        lambda store: store.remove([3]),
        SqliteStore.compact,
    ]
    said = []
    for write, works in ((False, reading), (True, writing)):
        for work in works:
            try:
                with SqliteStore.open(folder, write=write, exact_below=EXACT_BELOW) as store:
                    found = work(store)
                if work is SqliteStore.check:
                    said += [fault.what for fault in found]  # type: ignore[attr-defined]
            except InputError as error:
                said.append(error.message)
            out.unlink(missing_ok=True)
    return said


NOBODY = f"CREATE VIEW images AS {ENDLESS} SELECT i AS id, 'p' AS path FROM n"
STRANGE: dict[str, tuple[Change, str]] = {
    "an endless view in the place of a table": (sql("DROP TABLE images", NOBODY), "view 'images'"),
    "an endless view that nobody asked for": (sql(f"CREATE VIEW v AS {ENDLESS} SELECT i FROM n"), "view 'v'"),
    "a view in the place of meta": (
        sql("ALTER TABLE meta RENAME TO m", f"CREATE VIEW meta AS {ENDLESS} SELECT i AS rows FROM n"),
        "gallery.db",
    ),
    "a trigger": (sql("CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM images; END"), "trigger 't'"),
    "a virtual table": (sql("CREATE VIRTUAL TABLE f USING fts5(x)"), "table 'f"),
    "a generated column": (
        sql("DROP TABLE thumbnails", "CREATE TABLE thumbnails (id INTEGER PRIMARY KEY, jpeg BLOB AS (zeroblob(9)))"),
        "table 'thumbnails'",
    ),
    "an index over an expression": (sql("CREATE INDEX i ON images (abs(size))"), "index 'i'"),
    "a column more": (sql("ALTER TABLE images ADD COLUMN more TEXT"), "table 'images'"),
    "no table of rejected files": (sql("DROP TABLE rejected"), "rejected"),
    "a schema that cannot be read": (sql("UPDATE sqlite_schema SET sql = 'CREATE' WHERE name = 'tags'"), "gallery.db"),
    "no row in meta": (sql("DELETE FROM meta"), "gallery.db"),
    "rows below none": (sql("UPDATE meta SET rows = -5"), "gallery.db"),
    "rows beyond all measure": (sql("UPDATE meta SET rows = 9223372036854775807"), "gallery.db"),
    "changes beyond all measure": (sql("UPDATE meta SET changes = 9223372036854775807"), "gallery.db"),
    "rows that are text": (loosened("meta", sql("UPDATE meta SET rows = 'many'")), "gallery.db"),
    "a generation that is a blob": (loosened("meta", sql("UPDATE meta SET generation = x'00'")), "gallery.db"),
    "ids that have run out": (sql("UPDATE sqlite_sequence SET seq = 9223372036854775807"), "gallery.db"),
    "ids that are text": (sql("UPDATE sqlite_sequence SET seq = 'x'"), "gallery.db"),
    "about is a list": (sql("UPDATE meta SET about = '[1, 2]'"), "gallery.db"),
    "about is nested": (lambda _, db: db.execute("UPDATE meta SET about = ?", ("[" * 100_000,)) and None, "gallery.db"),
    "a dimension of text": (about(dim="32"), "'dim'"),
    "a dimension beyond all measure": (about(dim=10**15), "'dim'"),
    "a threshold that is none": (about(threshold=float("nan")), "'threshold'"),
    "a model of numbers": (about(model=[1]), "'model'"),
    "a key more": (about(more=1), "'more'"),
    "a token out of the folder": (generation(token="../../../etc/x"), "'token'"),
    "a file out of the folder": (generation(files={"../outside.f16": [4, 5]}), "'files'"),
    "a file by its whole path": (generation(files={"/etc/passwd": [4, 5]}), "'files'"),
    "positions of text": (generation(positions="400"), "'positions'"),
    "positions beyond all measure": (generation(positions=10**30), "'positions'"),
    "positions beyond the files": (generation(positions=10**15, highest=10**16), "vectors-"),
    "more ids than there are": (generation(highest=ROWS + 1), "vectors-"),
    "lengths of text": (generation(files={"vectors-000000000000.f16": ["1", 2]}, token="0" * 12), "'files'"),
    "another key": (generation(other=1), "gallery.db"),
    "a generation nested deeply": (
        lambda _, db: db.execute("UPDATE meta SET generation = ?", ("[" * 100_000,)) and None,
        "gallery.db",
    ),
    "a path that is no text": (loosened("images", row(path=b"a")), "b'a': "),
    "a path that is nothing": (loosened("images", row(path=None)), "None: "),
    "a size of text": (loosened("images", row(size="x")), "000002.jpg"),
    "metadata that are a list": (row(metadata="[1]"), "000002.jpg"),
    "metadata with a list in them": (row(metadata='{"n": [1]}'), "000002.jpg"),
    "metadata without an end": (row(metadata='{"n": Infinity}'), "000002.jpg"),
    "metadata nested deeply": (row(metadata='{"a":' * 50_000), "000002.jpg"),
    "a vector that is not finite": (vector([np.nan] * DIM), "000002.jpg"),
    "a vector too short": (vector([1]), "000002.jpg"),
    "a vector of text": (loosened("vectors", sql("UPDATE vectors SET vector = 'abc' WHERE id = 3")), "000002.jpg"),
    "a vector of nothing": (loosened("vectors", sql("UPDATE vectors SET vector = NULL WHERE id = 3")), "000002.jpg"),
    "a thumbnail of text": (
        loosened("thumbnails", sql("INSERT INTO thumbnails VALUES (3, 'abc', 5)")),
        "thumbnail",
    ),
    "removed ids of text": (loosened("removed", sql("INSERT INTO removed VALUES ('a', 'b')")), "gallery.db"),
    "rejected files of numbers": (
        loosened("rejected", sql("INSERT INTO rejected VALUES (1, 2, 'a', 'b')")),
        "rejected",
    ),
    "rows without vectors": (sql("DELETE FROM vectors WHERE id > 90"), "vector"),
    "ids that do not ascend": (derived("vectors", ids_where(5, 3)), "vectors-"),
    "ids below none": (derived("vectors", ids_where(0, -7)), "vectors-"),
    "numbers that are not finite": (derived("vectors", lambda data: b"\xff" * 64 + data[64:]), "vectors-"),
    "fewer vectors": (derived("vectors", lambda data: data[80:]), "vectors-"),
    "no bytes of vectors": (derived("vectors", lambda _: b""), "vectors-"),
    "no graph at all": (derived("graph", lambda data: b"\0" * len(data)), "graph-"),
    "no bytes of a graph": (derived("graph", lambda _: b""), "graph-"),
    "a graph of more vectors": (
        derived("graph", lambda data: np.array([1 << 31, 1 << 31], "<u4").tobytes() + data[8:]),
        "graph-",
    ),
    "a graph that begins nowhere": (derived("graph", numbers_at(64 + 32, "<u8", 1 << 40)), "graph-"),
    "a graph of many levels": (derived("graph", numbers_at(64 + 24, "<u8", 30_000)), "graph-"),
    "a graph with other levels": (derived("graph", numbers_at(64 + 40, "<i2", 7, -3, 9)), "graph-"),
    "a graph with strange neighbours": (
        derived("graph", numbers_at(64 + 40 + 2 * ROWS + 10, "<u4", 48, *range(1 << 30, (1 << 30) + 48))),
        "graph-",
    ),
    "a graph with too many neighbours": (
        derived("graph", numbers_at(64 + 40 + 2 * ROWS + 10, "<u4", 1 << 31)),
        "graph-",
    ),
    "a graph with a key twice": (derived("graph", numbers_at(64 + 40 + 2 * ROWS, "<u8", 1)), "graph-"),
}


@pytest.mark.parametrize(("change", "named"), STRANGE.values(), ids=STRANGE.keys())
def test_a_hostile_gallery_is_named_and_does_no_harm(folder: Path, tmp_path: Path, change: Change, named: str) -> None:
    changed(folder, change)
    said = used(folder, tmp_path / "out.parquet")
    assert any(named in words for words in said), said


def outside(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "outside"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["gallery.db", "gallery.db-wal", "gallery.db-journal", "index.lock"])
def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    there = outside(tmp_path, path.read_bytes() if path.exists() else b"keep me")
    before = there.read_bytes()
    path.unlink(missing_ok=True)
    path.symlink_to(there)
    with pytest.raises(InputError, match=name):
        SqliteStore.open(folder, write=True)
    assert there.read_bytes() == before


@pytest.mark.parametrize("kind", ["vectors", "graph"])
def test_an_index_file_that_is_a_link_or_a_pipe_is_not_read(folder: Path, tmp_path: Path, kind: str) -> None:
    (path,) = folder.glob(f"{kind}-*")
    there = outside(tmp_path, path.read_bytes())
    for make in (lambda: path.symlink_to(there), lambda: os.mkfifo(path)):
        path.unlink()
        make()
        with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
            (fault,) = store.check()
            assert fault.what.startswith(path.name)
            assert all(found.exact for found in store.search(QUERIES))


def test_a_pipe_in_the_place_of_the_lock_does_no_harm(folder: Path) -> None:
    (folder / "index.lock").unlink()
    os.mkfifo(folder / "index.lock")
    with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as store:
        store.compact()
        assert store.check() == []


def test_an_index_file_longer_than_any_reason_is_not_read(folder: Path) -> None:
    (path,) = folder.glob("vectors-*")
    length = 1 << 40
    with path.open("r+b") as file:
        file.truncate(length)  # takes no room on the disk
    changed(
        folder,
        generation(positions=length // (2 * DIM + 8), highest=length, files={path.name: [length, 0]}),
    )
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
        assert any(path.name in fault.what for fault in store.check())
        assert all(found.exact for found in store.search(QUERIES))


@pytest.mark.parametrize("kind", ["vectors", "graph"])
def test_an_index_file_cut_short_under_a_store_does_not_matter_to_it(folder: Path, kind: str) -> None:
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
        before = store.search(QUERIES)
        (path,) = folder.glob(f"{kind}-*")
        os.truncate(path, 10)
        after = store.search(QUERIES)
        assert [[hit.id for hit in found.hits] for found in after] == [
            [hit.id for hit in found.hits] for found in before
        ]
        assert not after[0].exact
        with SqliteStore.open(folder, exact_below=EXACT_BELOW) as other:  # reads the file again
            assert all(found.exact for found in other.search(QUERIES))


def test_stores_of_a_process_share_what_they_have_read(folder: Path) -> None:
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as one, SqliteStore.open(folder) as other:
        for store in (one, other):
            store.search(QUERIES)
        first, second = (store._index.view for store in (one, other))
        assert np.shares_memory(first.matrix, second.matrix)
        assert first.graph is not second.graph  # usearch lets one thread search at a time


def test_a_writer_repairs_a_damaged_record_of_the_index_files(folder: Path) -> None:
    changed(folder, generation(token="../x"))
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store, pytest.raises(InputError, match="compact"):
        store.search(QUERIES)
    with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as store:
        assert [fault.mended for fault in store.check()] == [True]
        assert store.check() == []
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
        assert not store.search(QUERIES)[0].exact
        assert store.check() == []


def test_what_an_older_gallery_says_of_its_files_is_read() -> None:
    text = '{"token": "0123456789ab", "highest": 9, "positions": 5, "files": {"vectors-0123456789ab.f16": [720, 7]}}'
    assert Generation.from_json(text) == Generation("0123456789ab", 9, 5, {"vectors-0123456789ab.f16": (720, 7)})
