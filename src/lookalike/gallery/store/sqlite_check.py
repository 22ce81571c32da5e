"""The check of a gallery in a folder: the structure of the database, every item, every index file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lookalike.errors import InputError
from lookalike.gallery.store.base import Problem
from lookalike.gallery.store.common import checksum, filterable
from lookalike.gallery.store.index_files import Generation, IndexedVectors, generation_of, open_index
from lookalike.gallery.store.index_maintenance import IndexMaintenance
from lookalike.gallery.store.sqlite_rows import STORED, fault_of_record, is_intact, metadata_of, shown
from lookalike.gallery.store.sqlite_schema import read_meta

MAX_PROBLEMS = 100  # of one kind
ADD_AGAIN = "Remove the item and add the image again."
REMAKE = "The next 'lookalike gallery compact' makes it again."
RESTORE = "Restore a copy of the folder, or create a new gallery of its images."

Copies = list[tuple[bytes, int]]  # intact vectors with their ids


def check(path: Path, db: sqlite3.Connection, dim: int, maintenance: IndexMaintenance | None) -> list[Problem]:
    """Return the problems of a gallery.

    A writer restores damaged vectors that an index file still holds, and makes damaged index files again.

    Args:
        path: of the database.
        db: connection to it.
        dim: numbers of a vector.
        maintenance: of a writer; None: repair nothing.
    """
    copies: Copies = []
    try:
        problems = _find(path, db, dim, copies, mend=maintenance is not None)
        if copies:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("UPDATE vectors SET vector = ? WHERE id = ?", copies)
            db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        return [Problem(f"{path.name}: {error}", RESTORE)]
    if maintenance is None:
        return problems
    if maintenance.mended:
        problems.append(Problem(maintenance.mended.rstrip("."), REMAKE, mended=True))
        maintenance.mended = ""
    if maintenance.failure:
        problems.append(Problem(f"the index files could not be made: {maintenance.failure}", REMAKE))
    if any(problem.remedy == REMAKE for problem in problems):
        return _remake(problems, maintenance)
    return problems


def _find(path: Path, db: sqlite3.Connection, dim: int, copies: Copies, *, mend: bool) -> list[Problem]:
    """Find problems as of one moment. With `mend`, intact copies of damaged vectors are added to `copies`."""
    copies.clear()
    db.execute("BEGIN")
    try:
        broken = [str(found) for (found,) in db.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})") if found != "ok"]
        if broken:
            return [Problem(f"{path.name}: {problem}", RESTORE) for problem in broken]
        problems = []
        recorded = read_meta(db).generation
        try:
            generation = generation_of(recorded, str(path))
        except InputError as error:
            problems, generation = [Problem(error.message.rstrip("."), REMAKE, mended=True)], Generation()
        indexed, faults = open_index(path.parent, generation, dim, again=True)
        problems += [
            *_items(db, path.name),
            *_thumbnails(db),
            *_vectors(db, dim, indexed, copies, mend=mend),
            *_differences(db, generation, indexed),
        ]
        problems += [Problem(f"{name} {fault}", REMAKE, mended=True) for name, fault in faults.items()]
    finally:
        if db.in_transaction:
            db.execute("COMMIT")
    if faults and read_meta(db).generation != recorded:  # a writer replaced the index files while they were read
        return _find(path, db, dim, copies, mend=mend)
    return problems


def _remake(problems: list[Problem], maintenance: IndexMaintenance) -> list[Problem]:
    """Make the index files again, and return the same problems as repaired, or the reason why they could not be."""
    try:
        maintenance.renew(fresh=True)
    except (OSError, InputError) as error:
        failed = Problem(f"the index files cannot be made again: {error}", "Repair the other problems first.")
        return [*problems, failed]
    done = "It has been made again."
    return [Problem(p.what, done, mended=True) if p.remedy == REMAKE else p for p in problems]


def _items(db: sqlite3.Connection, name: str) -> Iterator[Problem]:
    """Damaged records, wrong counts, and tags that differ from the metadata."""
    count = expected_tags = damaged = 0
    for *record, expected in db.execute(f"SELECT {STORED} FROM images"):
        count += 1
        if fault := fault_of_record(record, expected):
            damaged += 1  # its tags are unknown
            yield Problem(f"{shown(record[1])}: {fault}", ADD_AGAIN)
            continue
        for key, value in filterable(metadata_of(record[6])):
            expected_tags += 1
            query = "SELECT count(*) FROM tags WHERE key = ? AND value = ? AND id = ?"
            if not db.execute(query, (key, value, record[0])).fetchone()[0]:
                yield Problem(f"{record[1]}: filters do not find its '{key}' (id {record[0]})", ADD_AGAIN)
    recorded = read_meta(db).rows
    if recorded != count:
        yield Problem(f"{name}: it records {recorded} items, and has {count}", RESTORE)
    (tags,) = db.execute("SELECT count(*) FROM tags").fetchone()
    if tags > expected_tags and not damaged:
        yield Problem(f"{name}: filters find {tags - expected_tags} values of metadata that no item has", RESTORE)
    for table, one in (("vectors", "vector"), ("thumbnails", "thumbnail")):
        query = f"SELECT id FROM {table} WHERE id NOT IN (SELECT id FROM images) LIMIT {MAX_PROBLEMS}"
        for (id,) in db.execute(query):
            yield Problem(f"{name}: a {one} (id {id}) belongs to no item", RESTORE)


def _thumbnails(db: sqlite3.Connection) -> Iterator[Problem]:
    query = "SELECT id, jpeg, t.checksum, path FROM thumbnails t JOIN images USING (id)"
    for id, jpeg, expected, path in db.execute(query):
        if type(jpeg) is not bytes or checksum(id, jpeg) != expected:
            yield Problem(f"{shown(path)}: its thumbnail (id {id}) is damaged", ADD_AGAIN)


def _vectors(
    db: sqlite3.Connection, dim: int, indexed: IndexedVectors, copies: Copies, *, mend: bool
) -> Iterator[Problem]:
    """Missing and damaged vectors."""
    query = "SELECT i.id, path, vector, v.checksum FROM images i LEFT JOIN vectors v USING (id)"
    for id, path, vector, expected in db.execute(query):
        if vector is None:
            yield Problem(f"{shown(path)}: it has no vector (id {id})", ADD_AGAIN)
        elif not (is_intact(id, vector, expected, dim) and _is_finite(vector)):
            what = f"{shown(path)}: its vector (id {id}) is damaged"
            copy = _copy(indexed, id)
            if copy is None or not (is_intact(id, copy, expected, dim) and _is_finite(copy)):
                yield Problem(what, ADD_AGAIN)
            elif mend:
                copies.append((copy, id))
                yield Problem(what, "It has been restored from a copy.", mended=True)
            else:
                yield Problem(
                    what, "There is a copy: run 'lookalike gallery check' with write permission for the folder."
                )


def _is_finite(vector: bytes) -> bool:
    return bool(np.isfinite(np.frombuffer(vector, "<f2")).all())


def _copy(indexed: IndexedVectors, id: int) -> bytes | None:
    """Return the vector of an item in the index files."""
    place = int(np.searchsorted(indexed.ids, id))
    found = place < len(indexed.ids) and indexed.ids[place] == id
    return indexed.matrix[place].tobytes() if found else None


def _differences(db: sqlite3.Connection, generation: Generation, indexed: IndexedVectors) -> Iterator[Problem]:
    """Intact index files that differ from the database."""
    if not len(indexed.ids):
        return
    query = "SELECT id, vector, checksum FROM vectors WHERE id <= ? ORDER BY id"
    for id, vector, expected in db.execute(query, (generation.highest,)):
        copy = _copy(indexed, id)
        if copy is None or (copy != vector and checksum(id, copy) != expected):
            yield Problem(f"{generation.vectors_name} does not hold the vector of item {id}", REMAKE, mended=True)
            return
    if indexed.graph is not None and len(indexed.graph) != generation.positions:
        yield Problem(f"{generation.graph_name} has {len(indexed.graph)} vectors", REMAKE, mended=True)
