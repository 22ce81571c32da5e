"""Looking after a gallery in PostgreSQL: is every row as it was written, is the index good, and how large is it all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import numpy as np

from lookalike.errors import InputError
from lookalike.gallery.store.base import Problem, SearchResult
from lookalike.gallery.store.checks import checksum
from lookalike.gallery.store.postgres_connection import READ, Link, errors, psycopg, sql
from lookalike.gallery.store.postgres_schema import GRAPH, INDEXES, Names, indexes_of
from lookalike.gallery.store.postgres_search import PostgresSearcher

Connection = psycopg.Connection[Any]

TOLERANCE = 2e-3  # of a kept vector's length: float16 has 11 bits
TIE = 1e-6  # scores that differ by less are equal
PAGE = 1000  # rows in memory at a time
SAMPLE = 50  # rows by which `verify` looks at the index
GOOD = 0.8  # of them, at least, are to be found by their own vectors

STATE = """
SELECT c.relname, i.indisvalid AND i.indisready FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s
"""
CONSTRAINTS = ("gallery_pkey", "images_pkey", "images_by_path", "thumbnails_pkey", "rejected_pkey")
EVERYTHING = """
SELECT i.id, i.path, i.vector, i.checksum, t.jpeg, t.checksum
FROM {s}.images i LEFT JOIN {s}.thumbnails t USING (id) ORDER BY id
"""
SIZES = """
SELECT coalesce(sum(pg_catalog.pg_table_size(c.oid)), 0)::bigint,
    coalesce(sum(pg_catalog.pg_indexes_size(c.oid)), 0)::bigint
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r'
"""


def verify(link: Link, names: Names, dim: int, searcher: PostgresSearcher) -> list[Problem]:
    """What is not as it should be."""
    faults = _index_faults(link, names, dim)
    try:
        faults += _row_faults(link, names)
    except (errors.DataCorrupted, errors.IndexCorrupted) as error:
        faults.append(Problem(f"the server cannot read a table ({error.diag.message_primary})", "Restore a backup."))
        return faults
    if not any(GRAPH in fault.what for fault in faults):
        faults += _graph_faults(link, searcher)
    return faults


def compact(link: Link, names: Names, dim: int) -> None:
    """Make the indexes that are missing or broken, and the vectors' one anyway; then let the server tidy its tables.

    Raises:
        InputError: this role does not own the tables, or another is at it.
    """
    link.check_writes()
    with closing(link.connect()) as db, link.saying(), _compacting(link, names, db):
        link.begin(db, "BEGIN")
        db.execute("COMMIT; SET statement_timeout = 0")
        with suppress(errors.InvalidParameterValue):  # on systems where the server cannot see that a client is gone
            db.execute("SET client_connection_check_interval = 1000")
        state = dict(db.execute(STATE, (names.schema,)).fetchall())
        for index, valid in state.items():
            left_over = index not in INDEXES and index not in CONSTRAINTS  # of a compaction that was cut short
            if not valid and (left_over or index in INDEXES):
                db.execute(names("DROP INDEX CONCURRENTLY {s}.{index}", index=sql.Identifier(index)))
        for index in indexes_of(dim):
            if not state.get(index):
                db.execute(names(f"CREATE INDEX CONCURRENTLY {index} ON {INDEXES[index]}"))
            elif index == GRAPH:
                db.execute(names(f"REINDEX INDEX CONCURRENTLY {{s}}.{index}"))
        for table in ("images", "thumbnails", "rejected"):
            db.execute(names(f"VACUUM (ANALYZE) {{s}}.{table}"))


def recall(link: Link, searcher: PostgresSearcher, k: int, sample: int, seed: int) -> float:
    """Mean share of the exact answers that the approximate ones have, for a sample of the rows as queries."""

    def work(db: Connection) -> float:
        if not searcher.approximates(db, None):
            return 1.0
        shares = []
        for own, vector in searcher.sample(db, sample, seed):
            query = vector / np.linalg.norm(vector)
            right, given = (
                [
                    hit.score
                    for hit in searcher.search(db, query[None], k + 1, None, exact=exact)[0].hits
                    if hit.id != own
                ]
                for exact in (True, False)
            )
            right, given = right[:k], given[:k]
            shares.append(sum(score >= right[-1] - TIE for score in given) / len(right))
        return float(np.mean(shares))

    return link.reading(work, searcher.settings(k + 1))


def facts(link: Link, names: Names, searcher: PostgresSearcher) -> dict[str, str | int | float]:
    """Kind, place, rows, bytes, versions, and how durable the server is set to be."""

    def work(db: Connection) -> dict[str, str | int | float]:
        rows = db.execute(names("SELECT count(*) FROM {s}.images")).fetchall()[0][0]
        tables, indexes = db.execute(SIZES, (names.schema,)).fetchall()[0]
        state = dict(db.execute(STATE, (names.schema,)).fetchall())
        settings = ("fsync", "full_page_writes", "data_checksums")
        values = [db.execute("SELECT current_setting(%s)", (name,)).fetchall()[0][0] for name in settings]
        return {
            "kind": "PostgreSQL",
            "place": link.place,
            "rows": rows,
            "bytes": tables + indexes,
            "bytes of tables": tables,
            "bytes of indexes": indexes,
            "covered by the approximate index": rows if state.get(GRAPH) else 0,
            "exact up to": searcher.few,
            "server": f"PostgreSQL {db.info.server_version // 10000}.{db.info.server_version % 10000}",
            "pgvector": link.extension.version if link.extension else "",
            "the server's care": ", ".join(f"{name} {value}" for name, value in zip(settings, values, strict=True)),
        }

    return link.reading(work)


def _index_faults(link: Link, names: Names, dim: int) -> list[Problem]:
    state = dict(link.reading(lambda db: db.execute(STATE, (names.schema,)).fetchall()))
    faults = []
    for index in (*CONSTRAINTS, *indexes_of(dim)):
        if state.get(index):
            continue
        what = f"index {names.schema}.{index} is {'not valid' if index in state else 'missing'}"
        mends = index in INDEXES
        remedy = "Make it anew: lookalike gallery compact" if mends else "Restore a backup."
        faults.append(Problem(what, remedy, mended=mends))
    for index in state.keys() - {*CONSTRAINTS, *INDEXES}:
        if not state[index]:
            what = f"index {names.schema}.{index} is left over from a compaction that was cut short"
            faults.append(Problem(what, "Remove it: lookalike gallery compact", mended=True))
    return faults


def _row_faults(link: Link, names: Names) -> list[Problem]:
    faults = []
    with closing(link.connect()) as db, _reporting(link):
        link.begin(db, READ)
        with db.cursor(name="everything", binary=True) as cursor:
            cursor.itersize = PAGE
            for id, path, vector, of_vector, jpeg, of_jpeg in cursor.execute(names(EVERYTHING)):
                if checksum(id, vector.tobytes()) != of_vector:
                    faults.append(
                        Problem(
                            f"{path}: its vector (row {id}) is damaged", "Remove the row, then add the picture again."
                        )
                    )
                elif not abs(np.linalg.norm(vector.astype(np.float32)) - 1) <= TOLERANCE:
                    faults.append(
                        Problem(
                            f"{path}: its vector (row {id}) has not length 1",
                            "Remove the row, then add the picture again.",
                        )
                    )
                if jpeg is not None and checksum(id, jpeg) != of_jpeg:
                    faults.append(
                        Problem(
                            f"{path}: its thumbnail (row {id}) is damaged",
                            "Remove the row, then add the picture again.",
                        )
                    )
    return faults


def _graph_faults(link: Link, searcher: PostgresSearcher) -> list[Problem]:
    """Whether the index finds rows by their own vectors; one that was damaged, or made by another CPU, does not."""

    def work(db: Connection) -> float:
        if not searcher.approximates(db, None):
            return 1.0
        found = []
        for own, vector in searcher.sample(db, SAMPLE, seed=0):
            answer: SearchResult = searcher.search(db, vector[None], 1, None, exact=False)[0]
            found.append(answer.hits[0].id == own or answer.hits[0].score >= float(vector @ vector) - 1e-4)
        return float(np.mean(found))

    share = link.reading(work, searcher.settings(1))
    if share >= GOOD:
        return []
    what = f"index {searcher.names.schema}.{GRAPH} finds only {share:.0%} of a sample of rows by their own vectors"
    return [Problem(what, "Make it anew: lookalike gallery compact", mended=True)]


@contextmanager
def _compacting(link: Link, names: Names, db: Connection) -> Iterator[None]:
    """One compaction of a gallery at a time, by the owner of its tables."""
    owner = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = %s::regclass"
    if not db.execute(owner, (names.table("images"),)).fetchall()[0][0]:
        raise InputError(
            f"{link.place}: only the owner of its tables may compact it.", "Connect as the role that made the gallery."
        )
    lock = "pg_catalog.hashtext('lookalike gallery compact'), pg_catalog.hashtext(%s)"
    if not db.execute(f"SELECT pg_try_advisory_lock({lock})", (names.schema,)).fetchall()[0][0]:
        raise InputError(f"{link.place}: it is being compacted already.", "Wait for that to end.")
    yield  # the lock goes with the connection


@contextmanager
def _reporting(link: Link) -> Iterator[None]:
    """As `saying`, but damage is let through, to be reported."""
    try:
        yield
    except (errors.DataCorrupted, errors.IndexCorrupted):
        raise
    except psycopg.Error as error:
        with link.saying():
            raise error
