"""A look at everything in an embedded gallery: the database's structure, every row, every derived file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lookalike.errors import InputError
from lookalike.gallery.store.ann_index import Covered, Generation, generation_of, open_covered
from lookalike.gallery.store.base import Problem
from lookalike.gallery.store.checks import checksum
from lookalike.gallery.store.index_maintenance import IndexMaintenance
from lookalike.gallery.store.sqlite_rows import STORED, fault_of_record, metadata_of, shown
from lookalike.gallery.store.sqlite_schema import read_meta, tags

SHOWN = 100  # faults of one kind
AGAIN = "Remove it and add the picture again."
REMAKE = "It is made anew by the next 'lookalike gallery compact'."
RESTORE = "Restore a copy of the folder, or make a new gallery of its pictures."


def verify(path: Path, db: sqlite3.Connection, dim: int, upkeep: IndexMaintenance | None) -> list[Problem]:
    """Problems of a gallery. A writer repairs vectors that a derived file still has, and derived files.

    Args:
        path: of the database.
        db: its connection.
        dim: numbers of a vector.
        upkeep: of a writer; None for a reader, which repairs nothing.
    """
    copies: list[tuple[bytes, int]] = []
    try:
        found = _look(path, db, dim, copies, mend=upkeep is not None)
        if copies:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("UPDATE vectors SET vector = ? WHERE id = ?", copies)
            db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        return [Problem(f"{path.name}: {error}", RESTORE)]
    if upkeep is None:
        return found
    if upkeep.mended:
        found.append(Problem(upkeep.mended.rstrip("."), REMAKE, mended=True))
        upkeep.mended = ""
    if upkeep.failure:
        found.append(Problem(f"the derived files could not be made: {upkeep.failure}", REMAKE))
    if any(fault.remedy == REMAKE for fault in found):
        return _remade(found, upkeep)
    return found


def _look(
    path: Path, db: sqlite3.Connection, dim: int, copies: list[tuple[bytes, int]], *, mend: bool
) -> list[Problem]:
    """Problems of a gallery as of one moment. Vectors that can be restored are added to `copies`, with their ids."""
    copies.clear()
    db.execute("BEGIN")
    try:
        broken = [str(found) for (found,) in db.execute(f"PRAGMA integrity_check({SHOWN})") if found != "ok"]
        if broken:
            return [Problem(f"{path.name}: {problem}", RESTORE) for problem in broken]
        found = []
        said = read_meta(db).generation
        try:
            generation = generation_of(said, str(path))
        except InputError as error:
            found, generation = [Problem(error.message.rstrip("."), REMAKE, mended=True)], Generation()
        covered, damaged = open_covered(path.parent, generation, dim, again=True)
        found += [
            *_rows(db, path.name),
            *_thumbnails(db),
            *_vectors(db, dim, covered, copies, mend=mend),
            *_differences(db, generation, covered),
        ]
        found += [Problem(f"{name} {what}", REMAKE, mended=True) for name, what in damaged.items()]
    finally:
        if db.in_transaction:
            db.execute("COMMIT")
    if damaged and read_meta(db).generation != said:  # a writer replaced the files while they were read
        return _look(path, db, dim, copies, mend=mend)
    return found


def _remade(faults: list[Problem], upkeep: IndexMaintenance) -> list[Problem]:
    """The same faults once the derived files have been made anew, or with the reason why they could not be."""
    try:
        upkeep.renew(fresh=True)
    except (OSError, InputError) as error:
        return [*faults, Problem(f"the derived files cannot be made anew: {error}", "Mend what is named first.")]
    done = "It has been made anew."
    return [Problem(f.what, done, mended=True) if f.remedy == REMAKE else f for f in faults]


def _rows(db: sqlite3.Connection, name: str) -> Iterator[Problem]:
    """Rows that are not what was stored, counts that are not right, and tags that are not the metadata's."""
    count = tagged = broken = 0
    for *record, expected in db.execute(f"SELECT {STORED} FROM images"):
        count += 1
        if fault := fault_of_record(record, expected):
            broken += 1  # which tags it should have is not known
            yield Problem(f"{shown(record[1])}: {fault}", AGAIN)
            continue
        for key, value in tags(metadata_of(record[6])):
            tagged += 1
            there = "SELECT count(*) FROM tags WHERE key = ? AND value = ? AND id = ?"
            if not db.execute(there, (key, value, record[0])).fetchone()[0]:
                yield Problem(f"{record[1]}: its '{key}' (id {record[0]}) cannot be filtered by", AGAIN)
    said = read_meta(db).rows
    if said != count:
        yield Problem(f"{name}: says that it has {said} rows, and has {count}", RESTORE)
    (tags_kept,) = db.execute("SELECT count(*) FROM tags").fetchone()
    if tags_kept > tagged and not broken:
        yield Problem(f"{name}: filters know {tags_kept - tagged} values of metadata that no row has", RESTORE)
    for table, one in (("vectors", "vector"), ("thumbnails", "thumbnail")):
        for (id,) in db.execute(f"SELECT id FROM {table} WHERE id NOT IN (SELECT id FROM images) LIMIT {SHOWN}"):
            yield Problem(f"a {one} (id {id}) belongs to no row", RESTORE)


def _thumbnails(db: sqlite3.Connection) -> Iterator[Problem]:
    query = "SELECT id, jpeg, t.checksum, path FROM thumbnails t JOIN images USING (id)"
    for id, jpeg, expected, path in db.execute(query):
        if type(jpeg) is not bytes or checksum(id, jpeg) != expected:
            yield Problem(f"{shown(path)}: its thumbnail (id {id}) is damaged", AGAIN)


def _vectors(
    db: sqlite3.Connection, dim: int, covered: Covered, copies: list[tuple[bytes, int]], *, mend: bool
) -> Iterator[Problem]:
    """Vectors that are not what was stored; with `mend`, intact copies of them are added to `copies`."""
    query = "SELECT i.id, path, vector, v.checksum FROM images i LEFT JOIN vectors v USING (id)"
    for id, path, vector, expected in db.execute(query):
        if vector is None:
            yield Problem(f"{shown(path)}: it has no vector (id {id})", AGAIN)
        elif not _is_vector(vector, dim) or checksum(id, vector) != expected:
            what = f"{shown(path)}: its vector (id {id}) is damaged"
            copy = _copy(covered, id)
            if copy is None or not _is_vector(copy, dim) or checksum(id, copy) != expected:
                yield Problem(what, AGAIN)
            elif mend:
                copies.append((copy, id))
                yield Problem(what, "It has been restored from its copy.", mended=True)
            else:
                yield Problem(what, "A copy is left: run 'lookalike gallery check' where the folder can be written.")


def _is_vector(data: object, dim: int) -> bool:
    """Whether these are the bytes of a vector of finite numbers."""
    return type(data) is bytes and len(data) == 2 * dim and bool(np.isfinite(np.frombuffer(data, "<f2")).all())


def _copy(covered: Covered, id: int) -> bytes | None:
    """A row's vector in the derived files."""
    place = int(np.searchsorted(covered.ids, id))
    found = place < len(covered.ids) and covered.ids[place] == id
    return covered.matrix[place].tobytes() if found else None


def _differences(db: sqlite3.Connection, generation: Generation, covered: Covered) -> Iterator[Problem]:
    """Derived files that are whole and do not hold what the database has."""
    if not len(covered.ids):
        return
    query = "SELECT id, vector, checksum FROM vectors WHERE id <= ? ORDER BY id"
    for id, vector, expected in db.execute(query, (generation.highest,)):
        copy = _copy(covered, id)
        if copy is None or (copy != vector and checksum(id, copy) != expected):
            yield Problem(f"{generation.vectors_name} does not have the vector of row {id}", REMAKE, mended=True)
            return
    if covered.graph is not None and len(covered.graph) != generation.positions:
        yield Problem(f"{generation.graph_name} has {len(covered.graph)} vectors", REMAKE, mended=True)
