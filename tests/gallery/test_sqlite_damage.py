"""Damaged files of a gallery in a folder: noticed, named, repaired if possible; search results stay correct."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlite_items import ids_found, made, recall, rows_of, vectors_of

from lookalike.errors import InputError
from lookalike.gallery.store.sqlite import SqliteStore

EXACT_BELOW = 100
ROWS = 400
QUERIES = vectors_of(20, seed=5)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A closed gallery with a graph, and the exact answers to `QUERIES`."""
    folder = tmp_path_factory.mktemp("kept") / "g"
    made(folder, ROWS, exact_below=EXACT_BELOW).close()
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
        assert store.check() == []
        return folder, ids_found(store, QUERIES, exact=True)


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed gallery of 50 items, without index files."""
    folder = tmp_path_factory.mktemp("fifty") / "g"
    made(folder, 50, exact_below=EXACT_BELOW).close()
    return folder


def flip(path: Path, place: int, bit: int = 3) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(int(path.stat().st_size * share))

    return damage


def flipped(share: float) -> Callable[[Path], None]:
    return lambda path: flip(path, int((path.stat().st_size - 1) * share))


def foreign(path: Path) -> None:
    """Bytes of the same length from elsewhere."""
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


DAMAGES = {
    **{f"cut at {share:.4f}": cut(share) for share in (0, 0.01, 0.5, 0.9999)},
    **{f"bit flipped at {share}": flipped(share) for share in (0, 0.05, 0.5, 0.8, 1)},
    "missing": Path.unlink,
    "foreign": foreign,
}


@pytest.mark.parametrize("name", ["graph", "vectors"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_index_files_are_named_and_made_again(
    kept: tuple[Path, list[list[int]]], tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder, right = tmp_path / "g", kept[1]
    shutil.copytree(kept[0], folder)
    (path,) = folder.glob(f"{name}-*")
    damage(path)
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as reader:
        assert ids_found(reader, QUERIES) == right
        assert all(found.exact for found in reader.search(QUERIES))
        (fault,) = reader.check()
        assert path.name in fault.what
    with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as writer:
        (fault,) = writer.check()
        assert fault.mended
        assert path.name in fault.what
        assert writer.check() == []
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as reader:
        assert recall(ids_found(reader, QUERIES), right) >= 0.99
        assert not any(found.exact for found in reader.search(QUERIES))
        assert reader.facts()["covered by the approximate index"] == ROWS


@pytest.mark.parametrize("damage", [cut(0.5), flipped(0.5)])
def test_a_writer_that_adds_does_not_build_on_damage(
    kept: tuple[Path, list[list[int]]], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "g"
    shutil.copytree(kept[0], folder)
    (path,) = folder.glob("graph-*")
    damage(path)
    with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as writer:
        writer.add(rows_of(vectors_of(300, seed=9), ROWS))
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as reader:
        assert reader.check() == []
        assert reader.facts()["covered by the approximate index"] == ROWS + 300
        assert recall(ids_found(reader, QUERIES), ids_found(reader, QUERIES, exact=True)) >= 0.99


def place_of_vector(store: SqliteStore, id: int) -> int:
    """Where a row's vector begins in the database's file."""
    vector = store.vectors([id])[0].astype("<f2").tobytes()
    return (store.folder / "gallery.db").read_bytes().index(vector)


def test_a_flipped_bit_of_a_vector_is_noticed_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    made(folder, 50, exact_below=EXACT_BELOW).close()
    with SqliteStore.open(folder) as store:
        place = place_of_vector(store, 8)
    flip(folder / "gallery.db", place + 20, 0)
    with SqliteStore.open(folder) as store:
        (fault,) = store.check()
        assert "000007.jpg" in fault.what
        assert "id 8" in fault.what
        assert not fault.mended
        with pytest.raises(InputError, match=r"^000007.jpg: .*id 8"):
            store.search(QUERIES)
        with pytest.raises(InputError, match=r"000007\.jpg"):
            store.vectors([7, 8])
        assert len(store.vectors([7, 9])) == 2
    with SqliteStore.open(folder, write=True) as store:
        assert store.remove([8]) == 1
        store.add(rows_of(vectors_of(1, seed=4), 7))
        assert len(store.search(QUERIES)[0].hits) == 10
        assert store.check() == []


def test_a_damaged_vector_comes_back_from_its_copy(kept: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    folder = tmp_path / "g"
    shutil.copytree(kept[0], folder)
    with SqliteStore.open(folder) as store:
        before, place = store.vectors([77]), place_of_vector(store, 77)
    flip(folder / "gallery.db", place + 7)
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
        assert ids_found(store, QUERIES, exact=True) == kept[1]  # from the matrix, which is whole
        (fault,) = store.check()
        assert not fault.mended
        assert "000076.jpg" in fault.what
    with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as store:
        (fault,) = store.check()
        assert fault.mended
        assert "000076.jpg" in fault.what
        assert np.array_equal(store.vectors([77]), before)
        assert store.check() == []


def test_a_damaged_vector_stops_no_writer_and_is_named(kept: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    folder = tmp_path / "g"
    shutil.copytree(kept[0], folder)
    with SqliteStore.open(folder) as store:
        place = place_of_vector(store, 5)
    flip(folder / "gallery.db", place)
    for path in folder.glob("*-*.*"):
        if path.suffix in {".f16", ".usearch"}:
            path.unlink()
    with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as store:
        store.add(rows_of(vectors_of(5, seed=2), ROWS))
        assert len(store) == ROWS + 5
        named = [fault.what for fault in store.check() if not fault.mended]
        assert any("000004.jpg" in what and "id 5" in what for what in named)
        with pytest.raises(InputError, match=r"000004\.jpg"):
            store.compact()
        store.remove([5])
        store.compact()
        assert store.check() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE images SET label = 'other' WHERE id = 3", "000002.jpg: .*id 3"),
        ("UPDATE images SET metadata = '{' WHERE id = 3", "000002.jpg: .*id 3"),
        ("DELETE FROM vectors WHERE id = 3", "000002.jpg: .*no vector"),
        ("UPDATE vectors SET vector = x'00' WHERE id = 3", r"000002.jpg: .*vector \(id 3\)"),
        ("INSERT INTO thumbnails VALUES (3, x'00', 5)", "000002.jpg: .*thumbnail"),
        ("DELETE FROM tags WHERE id = 3 AND key = 'n'", "000002.jpg: .*'n'"),
        ("INSERT INTO tags VALUES ('n', '2', 9999)", "gallery.db: .* 1 "),
        ("INSERT INTO vectors VALUES (9999, x'00', 1)", "gallery.db: .*id 9999"),
        ("UPDATE meta SET rows = 7", "gallery.db: .*7.* 50"),
    ],
)
def test_every_table_is_checked(fifty: Path, tmp_path: Path, change: str, words: str) -> None:
    folder = tmp_path / "g"
    shutil.copytree(fifty, folder)
    db = sqlite3.connect(folder / "gallery.db")
    db.execute(change)
    db.commit()
    db.close()
    with SqliteStore.open(folder) as store:
        (fault,) = store.check()
    assert re.search(words, fault.what), fault.what


def test_damage_to_the_databases_own_structure_is_an_error_with_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    made(folder, 300, exact_below=1000).close()
    path = folder / "gallery.db"
    data = bytearray(path.read_bytes())
    data[8192:] = np.random.default_rng(0).bytes(len(data) - 8192)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"gallery.db: "), SqliteStore.open(folder) as store:
        store.search(QUERIES)


def test_files_of_a_later_time_are_not_used_with_an_older_database(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    made(folder, 300, exact_below=EXACT_BELOW).close()
    older = (folder / "gallery.db").read_bytes()
    with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as store:
        store.remove(range(1, 200))
        store.add(rows_of(vectors_of(200, seed=7), 300))
    for path in folder.glob("gallery.db*"):
        path.unlink()
    (folder / "gallery.db").write_bytes(older)
    with SqliteStore.open(folder, write=True, exact_below=EXACT_BELOW) as store:
        found = store.search(QUERIES)
        assert all(one.exact for one in found)
        assert {hit.id for one in found for hit in one.hits} <= set(range(1, 301))
    with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
        assert store.check() == []
        assert not store.search(QUERIES)[0].exact


def test_random_damage_to_any_file_gives_no_wrong_answer_that_verify_does_not_tell(tmp_path: Path) -> None:
    """In a process of its own, as a crash ends one; `damaging.py` may be run for more of it."""
    script = Path(__file__).with_name("damaging.py")
    command = [sys.executable, str(script), str(tmp_path / "damaged"), "25", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert sum(sum(count.values()) for count in counts.values()) == 25
    assert not any("wrong" in count for count in counts.values()), done.stderr
    assert all(set(counts[name]) == {"found"} for name in ("graph", "vectors"))
