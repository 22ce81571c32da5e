"""The database of a gallery in a folder: its tables, how it is opened and closed, and its errors in plain words."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from lookalike.errors import InputError
from lookalike.gallery.store.base import GalleryInfo, ReplacedError

DATABASE = "gallery.db"
FORMAT = 1
APPLICATION_ID = 0x4C4F4F4B  # "LOOK", in the header of the file
MAX_LOG = 64 << 20  # bytes of the write-ahead log that stay on the disk after a checkpoint
BUSY_SECONDS = 30.0  # to wait for a transaction of another process
MAX_VALUE = 256 << 20  # bytes of one value
MAX_COUNT = 1 << 62  # of rows, changes or ids
SUFFIXES = ("", "-wal", "-shm", "-journal")  # of the database's files

# `meta` has one row. Each transaction that changes rows adds one to `changes`; `generation` names the index files. An
# `images` row and its `vectors` row are an item. `tags` holds the metadata once more, for filters. `removed` lists ids
# that the index files, or the memory of a reader, may still hold. `look` is the dhash.
TABLES = f"""
PRAGMA page_size = 8192;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    about TEXT NOT NULL,
    changes INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    generation TEXT NOT NULL
) STRICT;
CREATE TABLE images (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL,
    size INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    label TEXT,
    metadata TEXT NOT NULL,
    look INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE INDEX images_by_digest ON images (digest);
CREATE INDEX images_by_label ON images (label);
CREATE TABLE vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE thumbnails (id INTEGER PRIMARY KEY, jpeg BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE tags (key TEXT, value TEXT, id INTEGER, PRIMARY KEY (key, value, id)) STRICT, WITHOUT ROWID;
CREATE TABLE removed (change INTEGER, id INTEGER, PRIMARY KEY (change, id)) STRICT, WITHOUT ROWID;
CREATE TABLE rejected (
    path TEXT PRIMARY KEY, reason TEXT NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""


def make_tables(path: Path, about: GalleryInfo, generation: str) -> None:
    """Create a database. It is on the disk when this returns."""
    with plain_errors(path):
        db = sqlite3.connect(path, isolation_level=None)
        try:
            db.executescript(TABLES)
            db.execute("INSERT INTO meta VALUES (1, ?, 0, 0, ?)", (json.dumps(asdict(about)), generation))
            db.execute("COMMIT")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            db.close()


@dataclass(frozen=True)
class Meta:
    """The row of `meta`: the number of changes so far, the number of items, and the record of the index files."""

    changes: int
    rows: int
    generation: str


def read_meta(db: sqlite3.Connection) -> Meta:
    """Read the row of `meta`.

    Raises:
        InputError: it is missing or damaged.
    """
    found = db.execute("SELECT changes, rows, generation FROM meta").fetchone()
    if found is None or [type(value) for value in found] != [int, int, str]:
        raise damaged(file_of(db), "its table 'meta' is damaged")
    changes, rows, generation = found
    if not (0 <= changes < MAX_COUNT and 0 <= rows < MAX_COUNT):
        raise damaged(file_of(db), f"its table 'meta' records {rows} items after {changes} changes")
    return Meta(changes, rows, generation)


def last_id(db: sqlite3.Connection) -> int:
    """Return the greatest id that was ever given to an item.

    Raises:
        InputError: the record of it is damaged.
    """
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'images'").fetchone()
    if found is None:
        return 0
    if type(found[0]) is not int or not 0 <= found[0] < MAX_COUNT:
        raise damaged(file_of(db), f"its last id is recorded as {found[0]!r:.40}")
    return int(found[0])


def file_of(db: sqlite3.Connection) -> str:
    """Return the path of an open database."""
    return next((str(file) for _, name, file in db.execute("PRAGMA database_list") if name == "main"), DATABASE)


def read_about(db: sqlite3.Connection, path: Path) -> GalleryInfo:
    """Read what the gallery was created with.

    Raises:
        InputError: it is damaged.
    """
    with plain_errors(path):
        row = db.execute("SELECT about FROM meta").fetchone()
    try:
        return GalleryInfo.from_tree(json.loads(row[0]))
    except (TypeError, ValueError, RecursionError) as error:
        raise damaged(path, f"its record of the model is damaged ({error})") from None


# Opening and closing


class Connection(sqlite3.Connection):
    """A connection in autocommit mode.

    `frozen` is set if the database was opened as one that cannot change: what `frozen_state` returned at that time.
    """

    frozen: tuple[int, int] | None = None


def connect(path: Path, *, write: bool) -> Connection:
    """Open the database of a gallery. The connection of a reader cannot write.

    Raises:
        InputError: there is no gallery, it has a newer format, or the file is not a gallery's database.
    """
    check_is_there(path)
    _check_files(path)
    with plain_errors(path):
        try:
            db = _checked(path, "rw" if write else "ro")
        except sqlite3.OperationalError as error:
            if write or error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
                raise
            if (state := frozen_state(path)) is None:
                raise InputError(
                    f"{path}: its last writer was interrupted, and this folder cannot be written.",
                    "Open the gallery once with write permission for the folder.",
                ) from None
            db = _checked(path, "ro&immutable=1")  # nobody writes: there is no log, and none can be created here
            db.frozen = state
        db.execute("PRAGMA synchronous = FULL")
        if write:
            db.execute(f"PRAGMA journal_size_limit = {MAX_LOG}")
        return db


def check_is_there(path: Path) -> None:
    """Refuse a folder without a gallery's database.

    Raises:
        InputError: there is none.
    """
    try:
        there = path.is_file()
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be read ({error.strerror}).", "Check its permissions.") from None
    if not there:
        what = "there is no gallery in this folder" if path.parent.exists() else "there is no gallery here"
        raise InputError(f"{path.parent}: {what}.", "Create one with: lookalike gallery create")


def frozen_state(path: Path) -> tuple[int, int] | None:
    """Return time and size of a database that nobody has open for writing; None if a log is left to be applied."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def identity_of(path: Path) -> tuple[int, int]:
    """Return device and inode of a database. Another file of the same name has another identity.

    Raises:
        ReplacedError: the database is gone.
        InputError: the folder cannot be read.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ReplacedError(
            f"{path.parent}: the gallery is no longer there.", "Put it back, and open it again."
        ) from None
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be read ({error.strerror}).", "Check its permissions.") from None
    return found.st_dev, found.st_ino


def is_there(path: Path, identity: tuple[int, int]) -> bool:
    """Return whether a database still has this identity."""
    try:
        return identity_of(path) == identity
    except InputError:
        return False


def open_guard(path: Path) -> Connection:
    """Open a reader that keeps a writer from deleting the write-ahead log when it closes.

    SQLite deletes the log by name. If another gallery was put into the folder meanwhile, that would be its log.
    """
    guard = connect(path, write=False)
    guard.execute("SELECT one FROM meta").fetchone()  # takes the reader's share of the database's lock
    return guard


def close(db: Connection, guard: Connection | None, path: Path, identity: tuple[int, int]) -> None:
    """Close the connections of a store, without touching a gallery that has replaced its own."""
    if guard is not None and is_there(path, identity):
        guard.close()
    db.close()
    if guard is not None:
        guard.close()


def _checked(path: Path, mode: str) -> Connection:
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    try:
        db.execute("PRAGMA trusted_schema = OFF")  # a stranger's database runs nothing
        db.execute("PRAGMA cell_size_check = ON")
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        _check_format(db, path)
        _check_schema(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise InputError(f"{path}: this database is not that of a gallery.", "Choose another folder.")
    if version > FORMAT:
        raise InputError(
            f"{path}: this gallery has format {version}, and this version of Lookalike reads up to {FORMAT}.",
            "Upgrade lookalike: pip install --upgrade lookalike",
        )


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that holds anything but the tables of a gallery.

    Views and triggers run SQL of whoever made the file, and a virtual table can read any file.
    """
    found = _schema(db)
    if strange := sorted(found - _gallery_schema()):
        kind, name, _ = strange[0]
        raise InputError(
            f"{path}: a gallery has no {kind} '{name:.40}'.",
            "Do not use this folder unless you trust its source. Create a new gallery of the images.",
        )
    if missing := sorted(_gallery_schema() - found):
        raise damaged(path, f"it has no {missing[0][0]} '{missing[0][1]}'")


def _schema(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Kind, name, and table and SQL of everything in a database. SQLite adds a table of sequences itself."""
    rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema LIMIT 100")
    return {(str(kind), str(name), f"{table} {sql}") for kind, name, table, sql in rows}


@cache
def _gallery_schema() -> frozenset[tuple[str, str, str]]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        db.executescript(TABLES)
        return frozenset(_schema(db))
    finally:
        db.close()


def _check_files(path: Path) -> None:
    """Refuse a database with a file that is a link or a device."""
    for suffix in SUFFIXES:
        file = path.with_name(path.name + suffix)
        try:
            plain = stat.S_ISREG(file.lstat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}).", "Check its permissions.") from None
        if not plain:
            raise InputError(
                f"{file}: a link or a device, not a plain file.", "Put the file itself into the gallery's folder."
            )


# Errors


def damaged(path: Path | str, what: str) -> InputError:
    """Return the error for a damaged database."""
    return InputError(
        f"{path}: {what}.", "Run 'lookalike gallery check' to find all damage, or restore a copy of the folder."
    )


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into an `InputError` that names the database."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError) as error:
        if "closed database" in str(error):  # Python's own text; it has no type or code for it
            raise InputError(f"{path.parent}: this store is closed.", "Open it again.") from None
        raise  # a bug
    except sqlite3.Error as error:
        raise _plain(error, path) from error
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: {error.object!r} is not text that can be stored.", "Rename the file.") from None


def _plain(error: sqlite3.Error, path: Path) -> InputError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    kept = "All acknowledged changes are kept."
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return InputError(f"{path}: the disk is full. {kept}", "Free some space and run it again.")
        case sqlite3.SQLITE_IOERR:
            return InputError(
                f"{path}: the disk failed to read or write ({error.sqlite_errorname}). {kept}",
                "Check whether it is full, over its quota, or failing; then run it again.",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return InputError(f"{path}: cannot be written.", "Change its permissions, or open it for reading.")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_AUTH:
            return InputError(f"{path}: cannot be opened.", "Check the permissions of the folder and its files.")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return InputError(
                f"{path}: locked by another program for {BUSY_SECONDS:.0f} s.", "End that program, or try again."
            )
        case sqlite3.SQLITE_NOTADB:
            return InputError(f"{path}: not the database of a gallery, or damaged.", "Restore a copy of it.")
        case sqlite3.SQLITE_TOOBIG:
            return InputError(f"{path}: a value is too large to store.", "Leave it out.")
    return damaged(path, f"the database is damaged ({error})")
