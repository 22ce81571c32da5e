"""Changes to the tables of `schema.py`, within a transaction that the caller began and ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.gallery.store.base import FailedFile, NewItem, Value
from lookalike.gallery.store.checks import checksum
from lookalike.gallery.store.sqlite_rows import (
    COLUMNS,
    STORED,
    checksum_of_record,
    chunks,
    marks,
    metadata_of,
    record,
    row_of,
)
from lookalike.gallery.store.sqlite_schema import file_of, last_id, tags


def begin_change(db: sqlite3.Connection) -> None:
    """Start a transaction that changes rows, and count it."""
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE meta SET changes = changes + 1")


def insert(db: sqlite3.Connection, rows: Sequence[NewItem], vectors: NDArray[np.float16]) -> list[int]:
    """Add rows of different paths, in place of those that have these paths now; their ids.

    Args:
        db: in a transaction.
        rows: what to add.
        vectors: (N, D) float16 as they are stored.
    """
    paths = [row.path for row in rows]
    delete(db, ids_where(db, "path", paths))
    forget(db, paths)
    first = 1 + last_id(db)
    ids = list(range(first, first + len(rows)))
    records = [record(id, row) for id, row in zip(ids, rows, strict=True)]
    db.executemany(
        "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(*values, checksum_of_record(values)) for values in records],
    )
    blobs = [vector.tobytes() for vector in vectors]
    _insert_blobs(db, "vectors", zip(ids, blobs, strict=True))
    _insert_blobs(db, "thumbnails", [(id, row.thumbnail) for id, row in zip(ids, rows, strict=True) if row.thumbnail])
    tagged = [(*pair, id) for id, row in zip(ids, rows, strict=True) if row.metadata for pair in tags(row.metadata)]
    db.executemany("INSERT INTO tags VALUES (?, ?, ?)", tagged)
    db.execute("UPDATE meta SET rows = rows + ?", (len(rows),))
    return ids


def delete(db: sqlite3.Connection, ids: Iterable[int]) -> int:
    """Remove rows, and remember that; how many there were."""
    count = 0
    for some in chunks(ids):
        there = db.execute(f"SELECT {COLUMNS} FROM images WHERE id IN ({marks(some)})", some).fetchall()
        _untag(db, there)
        gone = [values[0] for values in there]
        for table in ("images", "vectors", "thumbnails"):
            db.execute(f"DELETE FROM {table} WHERE id IN ({marks(gone)})", gone)
        db.executemany("INSERT INTO removed SELECT changes, ? FROM meta", [(id,) for id in gone])
        count += len(gone)
    if count:
        db.execute("UPDATE meta SET rows = rows - ?", (count,))
    return count


def relabel(db: sqlite3.Connection, ids: Iterable[int], label: str | None, metadata: Mapping[str, Value] | None) -> int:
    """Change the label or metadata of rows, where not None; how many rows there were."""
    count = 0
    text = None if metadata is None else record(0, NewItem("", b"", np.empty(0, np.float32), metadata=metadata))[6]
    for some in chunks(set(ids)):
        there = db.execute(f"SELECT {STORED} FROM images WHERE id IN ({marks(some)})", some).fetchall()
        changed = []
        for *values, expected in there:
            row_of((*values, expected), file_of(db))  # a new checksum must not hide what is damaged
            id, path, digest, size, modified, before, kept, look = values
            changed.append(
                (
                    id,
                    path,
                    digest,
                    size,
                    modified,
                    before if label is None else label,
                    kept if text is None else text,
                    look,
                )
            )
        if metadata is not None:
            _untag(db, there)
            tagged = [(*pair, values[0]) for values in there for pair in tags(metadata)]
            db.executemany("INSERT INTO tags VALUES (?, ?, ?)", tagged)
        db.executemany(
            "UPDATE images SET label = ?, metadata = ?, checksum = ? WHERE id = ?",
            [(values[5], values[6], checksum_of_record(values), values[0]) for values in changed],
        )
        count += len(there)
    return count


def reject(db: sqlite3.Connection, files: Iterable[FailedFile]) -> None:
    """Remember files that could not be read."""
    db.executemany(
        "INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)",
        [(file.path, file.reason, file.size, file.modified) for file in files],
    )


def forget(db: sqlite3.Connection, paths: Iterable[str]) -> None:
    """Forget them."""
    db.executemany("DELETE FROM rejected WHERE path = ?", [(path,) for path in paths])


def ids_where(db: sqlite3.Connection, column: str, values: Iterable[Any]) -> list[int]:
    """Ids of the rows that have one of the values in a column."""
    found: list[int] = []
    for some in chunks(values):
        found += [id for (id,) in db.execute(f"SELECT id FROM images WHERE {column} IN ({marks(some)})", some)]
    return found


def _insert_blobs(db: sqlite3.Connection, table: str, blobs: Iterable[tuple[int, bytes]]) -> None:
    db.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", [(id, blob, checksum(id, blob)) for id, blob in blobs])


def _untag(db: sqlite3.Connection, records: Iterable[tuple[Any, ...]]) -> None:
    """Remove the tags of these rows, found by what their metadata are."""
    for values in records:
        try:
            tagged = [(*pair, values[0]) for pair in tags(metadata_of(values[6]))]
        except (ValueError, TypeError):  # damaged metadata: its tags have to be looked for
            db.execute("DELETE FROM tags WHERE id = ?", (values[0],))
            continue
        db.executemany("DELETE FROM tags WHERE key = ? AND value = ? AND id = ?", tagged)
