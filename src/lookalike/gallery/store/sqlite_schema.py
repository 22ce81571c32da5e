"""The database of an embedded gallery: its tables, how it is opened, and what its errors mean to a person."""

from __future__ import annotations

import json
import math
import sqlite3
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from lookalike.errors import InputError
from lookalike.gallery.store.base import Filter, GalleryInfo, GalleryItem, ReplacedError, Value

DATABASE = "gallery.db"


FORMAT = 1


APPLICATION = 0x4C4F4F4B  # "LOOK", in the header of the file


LOG = 64 << 20  # bytes of the write-ahead log that stay on the disk once it is played in


PATIENCE = 30.0  # seconds to wait for another process's short lock


LONGEST = 256 << 20  # bytes of one value


LARGEST = 1 << 62  # of a count or an id


BESIDE = ("", "-wal", "-shm", "-journal")  # the database's files, by what follows its name


# `meta` has one row. Every transaction that changes rows adds one to `changes`; `generation` names the derived files.
# An `images` row with its `vectors` row is a picture; `tags` are its metadata once more, for filters. `removed` are ids
# that the derived files, or a reader's memory, may still hold.
TABLES = f"""
PRAGMA page_size = 8192;
PRAGMA application_id = {APPLICATION};
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
    """A new database, durable when this returns."""
    with saying(path):
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
    """What `meta` says: how many changes there were, how many rows there are, and which files are derived from them."""

    changes: int
    rows: int
    generation: str


def read_meta(db: sqlite3.Connection) -> Meta:
    """The row of `meta`.

    Raises:
        InputError: it is not there, or not as it was written.
    """
    found = db.execute("SELECT changes, rows, generation FROM meta").fetchone()
    if found is None or [type(value) for value in found] != [int, int, str]:
        raise damaged(file_of(db), "its table 'meta' is not as it was written")
    changes, rows, generation = found
    if not (0 <= changes < LARGEST and 0 <= rows < LARGEST):
        raise damaged(file_of(db), f"it says that it has {rows} rows after {changes} changes")
    return Meta(changes, rows, generation)


def last_id(db: sqlite3.Connection) -> int:
    """The greatest id that was ever given.

    Raises:
        InputError: what is kept of it is no id.
    """
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'images'").fetchone()
    if found is None:
        return 0
    if type(found[0]) is not int or not 0 <= found[0] < LARGEST:
        raise damaged(file_of(db), f"it says that the last id is {found[0]!r:.40}")
    return int(found[0])


def file_of(db: sqlite3.Connection) -> str:
    """The path of an open database."""
    return next((str(file) for _, name, file in db.execute("PRAGMA database_list") if name == "main"), DATABASE)


class Connection(sqlite3.Connection):
    """A connection in autocommit. `frozen` is set where the database was opened as one that cannot change: what
    `frozen_state` said then.
    """

    frozen: tuple[int, int] | None = None


def connect(path: Path, *, write: bool) -> Connection:
    """The database of a gallery. A reader's connection cannot write, so that only the writer ever touches the files.

    Raises:
        InputError: no gallery there, one of a newer format, or a file that is no database.
    """
    check_is_there(path)
    _check_files(path)
    with saying(path):
        try:
            db = _checked(path, "rw" if write else "ro")
        except sqlite3.OperationalError as error:
            if write or error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
                raise
            if (state := frozen_state(path)) is None:
                raise InputError(
                    f"{path}: its last writer did not end well, and this folder cannot be written.",
                    "Open the gallery once where it can be written.",
                ) from None
            db = _checked(path, "ro&immutable=1")  # nobody writes: the log is gone, and cannot be made here
            db.frozen = state
        db.execute("PRAGMA synchronous = FULL")
        if write:
            db.execute(f"PRAGMA journal_size_limit = {LOG}")
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
    """Time and size of a database that nobody has open for writing; None while there is a log that is not played in."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def identity_of(path: Path) -> tuple[int, int]:
    """Which file a database is: another one that takes its name has another identity.

    Raises:
        ReplacedError: it is not there.
        InputError: it cannot be looked at.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ReplacedError(
            f"{path.parent}: the gallery is no longer there.", "Put it back, and open it again."
        ) from None
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be looked at ({error.strerror}).", "Check its permissions.") from None
    return found.st_dev, found.st_ino


def read_about(db: sqlite3.Connection, path: Path) -> GalleryInfo:
    """What the gallery was made with.

    Raises:
        InputError: it cannot be read.
    """
    with saying(path):
        row = db.execute("SELECT about FROM meta").fetchone()
    try:
        return GalleryInfo.from_tree(json.loads(row[0]))
    except (TypeError, ValueError, RecursionError) as error:
        raise damaged(path, f"what the gallery was made with is not readable ({error})") from None


def _checked(path: Path, mode: str) -> Connection:
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    try:
        db.execute("PRAGMA trusted_schema = OFF")  # a stranger's database runs nothing
        db.execute("PRAGMA cell_size_check = ON")
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        _check_format(db, path)
        _check_schema(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise InputError(f"{path}: this database is not a gallery's.", "Choose another folder.")
    if version > FORMAT:
        raise InputError(
            f"{path}: this gallery has format {version}, and this version of lookalike knows {FORMAT}.",
            "Upgrade lookalike: pip install --upgrade lookalike",
        )


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that has anything but the tables of a gallery: a view or a trigger in it can do anything, and a
    virtual table read any file.
    """
    found = _schema(db)
    if strange := sorted(found - _gallery_schema()):
        kind, name, _ = strange[0]
        raise InputError(
            f"{path}: its {kind} '{name:.40}' is not one of a gallery's.",
            "Do not use this folder unless you trust where it came from; make a gallery of its pictures.",
        )
    if missing := sorted(_gallery_schema() - found):
        raise damaged(path, f"it has no {missing[0][0]} '{missing[0][1]}'")


def _schema(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Kind, name, and table and SQL of all that a database holds. SQLite makes a sequence of its own."""
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
    """Refuse a database, or a file of it, that is a link or a device: a stranger's may lead anywhere."""
    for ending in BESIDE:
        file = path.with_name(path.name + ending)
        try:
            plain = stat.S_ISREG(file.lstat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{file}: cannot be looked at ({error.strerror}).", "Check its permissions.") from None
        if not plain:
            raise InputError(
                f"{file}: a link or a device, no plain file.", "Put the file itself into the gallery's folder."
            )


def damaged(path: Path | str, what: str) -> InputError:
    """The error for a database that is not as it was written."""
    return InputError(
        f"{path}: {what}.", "Look at all of it with 'lookalike gallery check', or restore a copy of the folder."
    )


@contextmanager
def saying(path: Path) -> Iterator[None]:
    """Errors of the database, within, become an `InputError` that names its file."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # a bug, or a store that was closed
    except sqlite3.Error as error:
        raise _said(error, path) from error
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: {error.object!r} is not text that can be stored.", "Rename the file.") from None


def _said(error: sqlite3.Error, path: Path) -> InputError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    kept = "What was acknowledged is kept."
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return InputError(f"{path}: the disk is full. {kept}", "Free some space and run it again.")
        case sqlite3.SQLITE_IOERR:
            return InputError(
                f"{path}: the disk did not take or give what it should ({error.sqlite_errorname}). {kept}",
                "See whether it is full, over its quota, or failing; then run it again.",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return InputError(f"{path}: cannot be written.", "Change its permissions, or open it for reading.")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_AUTH:
            return InputError(f"{path}: cannot be opened.", "Check the permissions of the folder and its files.")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return InputError(f"{path}: held by another program for {PATIENCE:.0f} s.", "End it and try again.")
        case sqlite3.SQLITE_NOTADB:
            return InputError(f"{path}: this is no gallery's database, or a damaged one.", "Restore a copy of it.")
        case sqlite3.SQLITE_TOOBIG:
            return InputError(f"{path}: a value is too large to store.", "Leave it out.")
    return damaged(path, f"the database is damaged ({error})")


# Filters on labels, paths and metadata as SQL, over the tables of `schema.py`.

OWN = ("label", "path")  # the row's own columns


MOST_KEYS = 100  # of a filter;


MOST_VALUES = 10_000  # of all its keys together,


MOST_BYTES = 1 << 20  # and so many of these and of the keys as JSON in UTF-8


BITS = 13_000  # of a whole number: some 3,900 digits


FEWER = "Ask with fewer of them at a time."


Clause = tuple[str, list[str | None]]  # SQL over `images`, with its parameters


def tag(value: Value) -> str:
    """A value as it is kept and compared: JSON, with whole floats as integers (1.0 equals 1).

    Raises:
        InputError: not a value that metadata may have.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{value} cannot be kept as metadata or filtered by.", "Leave it out, or use null.")
        if value.is_integer():
            value = int(value)
    if isinstance(value, int) and value.bit_length() > BITS:
        raise InputError("a number of thousands of digits cannot be kept as metadata or filtered by.", "Round it.")
    if value is not None and not isinstance(value, str | int | float):
        raise InputError(
            f"{value!r} cannot be kept as metadata or filtered by.", "Use text, numbers, true, false or null."
        )
    return json.dumps(value, ensure_ascii=False)


def tags(metadata: Mapping[str, Value]) -> list[tuple[str, str]]:
    """The rows of `tags` for a picture, without its id. Null is kept as no tag: a key that is null and one that is
    not there are the same to a filter.
    """
    return [(key, tag(value)) for key, value in metadata.items() if value is not None]


def values_of(filter: Filter | None) -> dict[str, list[Value]]:
    """The values of each key of a filter, one or several; each value once.

    Raises:
        InputError: more keys, values or bytes than a filter may have, or a value that cannot be filtered by.
    """
    found: dict[str, list[Value]] = {}
    count = size = 0
    for key, wanted in (filter or {}).items():
        given = wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        count += len(given)
        if len(found) >= MOST_KEYS or count > MOST_VALUES:
            limit = f"{MOST_KEYS} keys" if count <= MOST_VALUES else f"{MOST_VALUES:,} values"
            raise InputError(f"filter by '{key[:80]}': more than {limit} in all.", FEWER)
        size += len(key.encode("utf-8", "surrogatepass"))
        size += sum(len(tag(value).encode("utf-8", "surrogatepass")) for value in given)
        if size > MOST_BYTES:
            raise InputError(
                f"filter by '{key[:80]}': its keys and values have more than {MOST_BYTES >> 20} MiB.", FEWER
            )
        found[key] = list({(type(value) is bool, value): value for value in given}.values())
    return found


def clause(filter: Filter | None) -> Clause:
    """The condition on `images` that all of `where` hold; "TRUE" where there is none.

    Raises:
        InputError: as `values_of`.
    """
    conditions: list[str] = []
    parameters: list[str | None] = []
    for key, values in values_of(filter).items():
        condition, own = _own(key, values) if key in OWN else _of_metadata(key, values)
        conditions.append(condition)
        parameters += own
    return " AND ".join(conditions) or "TRUE", parameters


def passes(row: GalleryItem, filter: Filter | None) -> bool:
    """Whether a row does pass, by what it holds itself."""
    for key, wanted in (filter or {}).items():
        values = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        if key in OWN:
            there: object = row.label if key == "label" else row.path
            good = there in [value for value in values if value is None or isinstance(value, str)]
        else:
            there = row.metadata.get(key)
            kept = [value if value is None else tag(value) for value in values]
            good = (None if there is None else tag(there)) in kept
        if not good:
            return False
    return True


def _own(column: str, values: Sequence[Value]) -> Clause:
    """A label or path is text: a number or truth value equals none."""
    texts: list[str | None] = [*texts_of(column, values)]
    condition = f"{column} IN ({_marks(texts)})"
    return (f"({condition} OR {column} IS NULL)" if None in values else condition), texts


def texts_of(column: str, values: Sequence[Value]) -> list[str]:
    """The texts that a filter on a row's own column asks for; of a label, also with composed letters (NFC), as labels
    are kept.
    """
    texts = [value for value in values if isinstance(value, str)]
    composed = [unicodedata.normalize("NFC", text) for text in texts] if column == "label" else []
    return list(dict.fromkeys([*texts, *composed]))


def _of_metadata(key: str, values: Sequence[Value]) -> Clause:
    kept: list[str | None] = [tag(value) for value in values if value is not None]
    condition = f"id IN (SELECT id FROM tags WHERE key = ? AND value IN ({_marks(kept)}))"
    if None not in values:
        return condition, [key, *kept]
    return f"({condition} OR id NOT IN (SELECT id FROM tags WHERE key = ?))", [key, *kept, key]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
