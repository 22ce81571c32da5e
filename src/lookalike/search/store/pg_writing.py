"""Rows into the tables of `pg_schema.py`, within a transaction that the caller began and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.search.store.base import NewRow
from lookalike.search.store.pg_driver import Jsonb, psycopg
from lookalike.search.store.pg_schema import Names
from lookalike.search.store.pg_vectors import Half
from lookalike.search.store.rowdata import WRAP, checksum

IMAGES = "id, path, digest, size, modified, label, metadata, look, vector, checksum"
TYPES = ["int8", "text", "bytea", "int8", "int8", "text", "jsonb", "int8", "halfvec", "int8"]


def insert(
    db: psycopg.Connection[Any],
    names: Names,
    rows: Sequence[NewRow],
    vectors: NDArray[np.float16],
    metadata: Sequence[Jsonb],
) -> list[int]:
    """Add rows of different paths, in place of those that have these paths now; their ids.

    Rows are locked, removed and added by ascending path, whatever their order: two writers of the same paths then wait
    for each other instead of each holding what the other wants.

    Args:
        db: in a transaction.
        names: of the gallery.
        rows: what to add.
        vectors: (N, D) float16 as they are stored.
        metadata: of each row.
    """
    order = sorted(range(len(rows)), key=lambda place: rows[place].path.encode())
    paths = [rows[place].path for place in order]
    db.execute(names("SELECT FROM {s}.images WHERE path = ANY(%s::text[]) ORDER BY path FOR UPDATE"), (paths,))
    db.execute(names("DELETE FROM {s}.images WHERE path = ANY(%s::text[])"), (paths,))
    db.execute(names("DELETE FROM {s}.rejected WHERE path = ANY(%s::text[])"), (paths,))
    given = "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)"
    ids = sorted(id for (id,) in db.execute(given, (names.table("images"), len(rows))))
    halves = [Half(vector) for vector in vectors]
    sums = [checksum(id, vector.astype("<f2").tobytes()) for id, vector in zip(ids, vectors, strict=True)]
    with (
        db.cursor() as cursor,
        cursor.copy(names(f"COPY {{s}}.images ({IMAGES}) FROM STDIN (FORMAT binary)")) as copy,
    ):
        copy.set_types(TYPES)
        for place in order:
            row = rows[place]
            look = row.look - WRAP if row.look >= WRAP // 2 else row.look
            copy.write_row(
                (
                    ids[place],
                    row.path,
                    row.digest,
                    row.size,
                    row.modified,
                    row.label,
                    metadata[place],
                    look,
                    halves[place],
                    sums[place],
                )
            )
    with (
        db.cursor() as cursor,
        cursor.copy(names("COPY {s}.thumbnails (id, jpeg, checksum) FROM STDIN (FORMAT binary)")) as copy,
    ):
        copy.set_types(["int8", "bytea", "int8"])
        for id, row in zip(ids, rows, strict=True):
            if row.thumbnail:
                copy.write_row((id, row.thumbnail, checksum(id, row.thumbnail)))
    return ids
