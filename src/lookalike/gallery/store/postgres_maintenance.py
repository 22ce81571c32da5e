"""Maintenance of a gallery in PostgreSQL: the check of its items and indexes, compaction, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import numpy as np

from lookalike.errors import InputError
from lookalike.gallery.store.base import Problem
from lookalike.gallery.store.common import PAGE, checksum
from lookalike.gallery.store.postgres_connection import READ, Connection, Link, errors, psycopg, sql
from lookalike.gallery.store.postgres_rows import ADD_AGAIN
from lookalike.gallery.store.postgres_schema import DROP_NEXT, INDEXES, NEXT_INDEX, VECTOR_INDEX, Names, indexes_of
from lookalike.gallery.store.postgres_search import PostgresSearcher

STORED_TOLERANCE = 2e-3  # of the length of a stored vector: float16 has 11 bits
SAMPLE = 50  # items whose own vectors are searched for to check the index
MIN_FOUND = 0.8  # share of them that the index must find
COMPACT = "Make it again: lookalike gallery compact"

STATE = """
SELECT c.relname, i.indisvalid AND i.indisready FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s
"""
CONSTRAINTS = ("gallery_pkey", "images_pkey", "images_by_path", "thumbnails_pkey", "rejected_pkey")
ALL_ITEMS = """
SELECT i.id, i.path, i.vector, i.checksum, t.jpeg, t.checksum
FROM {s}.images i LEFT JOIN {s}.thumbnails t USING (id) ORDER BY id
"""
SIZES = """
SELECT coalesce(sum(pg_catalog.pg_table_size(c.oid)), 0)::bigint,
    coalesce(sum(pg_catalog.pg_indexes_size(c.oid)), 0)::bigint
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r'
"""


def check(link: Link, names: Names, dim: int, searcher: PostgresSearcher) -> list[Problem]:
    """Return the problems of a gallery."""
    problems = _check_indexes(link, names, dim)
    try:
        problems += _check_items(link, names)
    except (errors.DataCorrupted, errors.IndexCorrupted) as error:
        problems.append(Problem(f"the server cannot read a table ({error.diag.message_primary})", "Restore a backup."))
        return problems
    if not any(VECTOR_INDEX in problem.what for problem in problems):
        problems += _check_vector_index(link, searcher)
    return problems


def compact(link: Link, names: Names, dim: int, *, discard_reembed: bool = False) -> None:
    """Make missing and invalid indexes and the vector index again, then vacuum the tables.

    Raises:
        InputError: this role does not own the tables, or another compaction or re-embedding is running.
    """
    link.check_writes()
    with closing(link.connect()) as db, link.plain_errors(), alone(link, names, db):
        link.begin(db, "BEGIN")
        db.execute("COMMIT; SET statement_timeout = 0")
        with suppress(errors.InvalidParameterValue):  # some systems cannot see that a client is gone
            db.execute("SET client_connection_check_interval = 1000")
        if discard_reembed:
            db.execute(names(DROP_NEXT))
        state = dict(db.execute(STATE, (names.schema,)).fetchall())
        for index, valid in state.items():
            left_over = index not in INDEXES and index not in CONSTRAINTS  # from an interrupted compaction
            if not valid and (left_over or index in INDEXES):
                db.execute(names("DROP INDEX CONCURRENTLY {s}.{index}", index=sql.Identifier(index)))
        for index in indexes_of(dim):
            if not state.get(index):
                db.execute(names(f"CREATE INDEX CONCURRENTLY {index} ON {INDEXES[index]}"))
            elif index == VECTOR_INDEX:
                db.execute(names(f"REINDEX INDEX CONCURRENTLY {{s}}.{index}"))
        for table in ("images", "thumbnails", "rejected"):
            db.execute(names(f"VACUUM (ANALYZE) {{s}}.{table}"))


def facts(link: Link, names: Names, searcher: PostgresSearcher) -> dict[str, str | int | float]:
    """Return facts about a gallery and its server; see `Store.facts`."""

    def work(db: Connection) -> dict[str, str | int | float]:
        rows = db.execute(names("SELECT count(*) FROM {s}.images")).fetchall()[0][0]
        tables, indexes = db.execute(SIZES, (names.schema,)).fetchall()[0]
        state = dict(db.execute(STATE, (names.schema,)).fetchall())
        settings = ("fsync", "full_page_writes", "data_checksums")
        values = [db.execute("SELECT current_setting(%s)", (name,)).fetchall()[0][0] for name in settings]
        return {
            "kind": "PostgreSQL",
            "location": link.location,
            "rows": rows,
            "bytes": tables + indexes,
            "bytes of tables": tables,
            "bytes of indexes": indexes,
            "covered by the approximate index": rows if state.get(VECTOR_INDEX) else 0,
            "exact up to": searcher.exact_below,
            "server": f"PostgreSQL {db.info.server_version // 10000}.{db.info.server_version % 10000}",
            "pgvector": link.extension.version if link.extension else "",
            "the server's care": ", ".join(f"{name} {value}" for name, value in zip(settings, values, strict=True)),
        }

    return link.reading(work)


def _check_indexes(link: Link, names: Names, dim: int) -> list[Problem]:
    state = dict(link.reading(lambda db: db.execute(STATE, (names.schema,)).fetchall()))
    problems = []
    for index in (*CONSTRAINTS, *indexes_of(dim)):
        if state.get(index):
            continue
        what = f"index {names.schema}.{index} is {'not valid' if index in state else 'missing'}"
        mends = index in INDEXES
        problems.append(Problem(what, COMPACT if mends else "Restore a backup.", mended=mends))
    for index in state.keys() - {*CONSTRAINTS, *INDEXES, NEXT_INDEX}:
        if not state[index]:
            what = f"index {names.schema}.{index} is left over from an interrupted compaction"
            problems.append(Problem(what, "Remove it: lookalike gallery compact", mended=True))
    return problems


def _check_items(link: Link, names: Names) -> list[Problem]:
    problems = []
    with closing(link.connect()) as db, _reporting_damage(link):
        link.begin(db, READ)
        with db.cursor(name="everything", binary=True) as cursor:
            cursor.itersize = PAGE
            for id, path, vector, of_vector, jpeg, of_jpeg in cursor.execute(names(ALL_ITEMS)):
                if checksum(id, vector.tobytes()) != of_vector:
                    problems.append(Problem(f"{path}: its vector (id {id}) is damaged", ADD_AGAIN))
                elif not abs(np.linalg.norm(vector.astype(np.float32)) - 1) <= STORED_TOLERANCE:
                    problems.append(Problem(f"{path}: its vector (id {id}) does not have length 1", ADD_AGAIN))
                if jpeg is not None and checksum(id, jpeg) != of_jpeg:
                    problems.append(Problem(f"{path}: its thumbnail (id {id}) is damaged", ADD_AGAIN))
    return problems


def _check_vector_index(link: Link, searcher: PostgresSearcher) -> list[Problem]:
    """Check that the index finds items by their own vectors; a damaged one, or one made by another CPU, does not."""

    def work(db: Connection) -> float:
        if not searcher.approximates(db, None):
            return 1.0
        found = []
        for own, vector in searcher.sample(db, SAMPLE, seed=0):
            (result,) = searcher.search(db, vector[None], 1, None, exact=False)
            found.append(result.hits[0].id == own or result.hits[0].score >= float(vector @ vector) - 1e-4)
        return float(np.mean(found))

    share = link.reading(work, searcher.settings(1))
    if share >= MIN_FOUND:
        return []
    what = f"index {searcher.names.schema}.{VECTOR_INDEX} finds only {share:.0%} of a sample of items"
    return [Problem(what, COMPACT, mended=True)]


@contextmanager
def alone(link: Link, names: Names, db: Connection) -> Iterator[None]:
    """Allow one compaction or re-embedding of a gallery at a time, by the owner of its tables.

    Args:
        link: of the gallery.
        names: of the gallery.
        db: a connection that is closed after the block: that releases the lock.

    Raises:
        InputError: this role does not own the tables, or another process does one of these.
    """
    owner = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = %s::regclass"
    if not db.execute(owner, (names.table("images"),)).fetchall()[0][0]:
        raise InputError(
            f"{link.location}: only the owner of its tables may compact it or give it another model.",
            "Connect as the role that created the gallery.",
        )
    lock = "pg_catalog.hashtext('lookalike gallery compact'), pg_catalog.hashtext(%s)"
    if not db.execute(f"SELECT pg_try_advisory_lock({lock})", (names.schema,)).fetchall()[0][0]:
        raise InputError(
            f"{link.location}: another compaction or re-embedding is running.",
            "Wait until it has ended.",
        )
    yield


@contextmanager
def _reporting_damage(link: Link) -> Iterator[None]:
    """Like `Link.plain_errors`, but let errors of damage through, to be reported as problems."""
    try:
        yield
    except (errors.DataCorrupted, errors.IndexCorrupted):
        raise
    except psycopg.Error as error:
        with link.plain_errors():
            raise error
