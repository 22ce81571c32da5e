"""The end of a store's connections, in a folder where another gallery may have taken the place of its own."""

from __future__ import annotations

from pathlib import Path

from lookalike.errors import InputError
from lookalike.gallery.store.sqlite_schema import Connection, connect, identity_of


def guard_of(database: Path) -> Connection:
    """A reader that keeps the writer, as long as it is open, from removing the database's log when it closes. SQLite
    removes it by its name, which may be that of another gallery's log by then.
    """
    guard = connect(database, write=False)
    guard.execute("SELECT one FROM meta").fetchone()  # from the first reading on it holds its share of the lock
    return guard


def is_there(database: Path, identity: tuple[int, int]) -> bool:
    """Whether a database is still the one of this identity."""
    try:
        return identity_of(database) == identity
    except InputError:
        return False


def close(db: Connection, guard: Connection | None, database: Path, identity: tuple[int, int]) -> None:
    """Close a store's connections, without touching what has taken the database's place."""
    if guard is not None and is_there(database, identity):
        guard.close()
    db.close()
    if guard is not None:
        guard.close()
