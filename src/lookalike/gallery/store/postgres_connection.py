"""The connection of a store to a PostgreSQL server: transactions, reconnection, error messages, types of pgvector."""

from __future__ import annotations

import os
import random
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.extras import missing
from lookalike.gallery.store.base import ReplacedError

try:
    import psycopg
    from psycopg import adapt, conninfo, errors, pq, sql
    from psycopg.types.json import Jsonb
except ImportError as error:
    raise missing(f"a gallery in PostgreSQL needs psycopg, which cannot be imported ({error}).", "postgres") from None

__all__ = ["Jsonb", "adapt", "conninfo", "errors", "pq", "psycopg", "sql"]

# Options that a connection string need not have. Give up on a server that does not answer, and notice one that is gone.
DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "fallback_application_name": "lookalike",
    "client_encoding": "utf8",
}
READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off"
WRITE = (  # durable on return, whatever the defaults of the server; stricter settings than "on" are kept
    "BEGIN ISOLATION LEVEL READ COMMITTED;"
    " SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
MAX_TRIES = 8  # of a change that conflicts with other writers

# A gallery is identified by its server and the oid of its table: a gallery that was dropped and created again under the
# same name has another oid. Reading the oid also keeps others from dropping the gallery until the transaction ends.
IDENTITY = "SELECT tableoid::bigint, about ->> 'fingerprint' FROM {}.gallery"
# A switch to another model locks the table. LOCK waits for it without a snapshot, so the model is read after that.
# A SELECT alone would wait with the snapshot of a repeatable read already taken, and see the model from before.
WAIT = "LOCK TABLE {}.gallery IN ACCESS SHARE MODE"
SERVER = "SELECT system_identifier FROM pg_catalog.pg_control_system()"

INSTALL = (
    "Install pgvector on the server (Debian, Ubuntu: apt install postgresql-{version}-pgvector),"
    " then as a superuser of this database: CREATE EXTENSION vector"
)

Connection = psycopg.Connection[Any]
Result = TypeVar("Result")


class Link:
    """One connection, opened again when it was lost. Threads take turns.

    Statements are not prepared on the server and settings last for one transaction, so that a pooler can be used.

    Args:
        dsn: of the server, a URL or `key=value` words; missing values come from libpq's environment variables.
        name: of the gallery, for messages.
        write: whether changes are allowed.

    Raises:
        InputError: the server cannot be reached.
    """

    def __init__(self, dsn: str, name: str, *, write: bool) -> None:
        self._parts = parse(dsn)
        self.location = shown(self._parts, name)
        self._wait = sql.SQL(WAIT).format(sql.Identifier(name)).as_string(None)
        self._identify = sql.SQL(IDENTITY).format(sql.Identifier(name)).as_string(None)
        self._identity: tuple[int | None, int, str] | None = None
        self._server: int | None = None
        self._write = write
        self._mutex = threading.RLock()
        self._db: Connection | None = None
        self._closed = False
        self.extension: Extension | None = None
        self._alive()

    def close(self) -> None:
        """Close the connection. The link cannot be used any more."""
        with self._mutex:
            self._closed = True
            if self._db is not None:
                self._db.close()
                self._db = None

    def connect(self) -> Connection:
        """Open another connection to the same server, in autocommit mode. The caller closes it."""
        if self._closed:
            raise InputError(f"{self.location}: this store is closed.", "Open it again.")
        try:
            db = psycopg.connect(**{**DEFAULTS, **self._parts}, autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError as error:
            why = without_secrets(str(error), self._parts)
            raise InputError(
                f"{self.location}: the server cannot be used ({why}).",
                "Is it running, and are host, port, database, user and password right?",
            ) from None
        try:
            with self.plain_errors():
                self.prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def prepare(self, db: Connection) -> None:
        """Find pgvector in the database and register its types; read the identity of the server."""
        self.extension = find_extension(db)
        if self.extension is not None:
            register(db, self.extension)
        try:
            self._server = db.execute(SERVER).fetchall()[0][0]
        except errors.InsufficientPrivilege:
            self._server = None

    def hold(self, db: Connection) -> None:
        """Refuse any gallery but the one that this transaction sees from now on."""
        self._identity = (self._server, *db.execute(self._identify).fetchall()[0])

    def release(self) -> None:
        """Accept any gallery of this name again, until `hold` is called."""
        self._identity = None

    def begin(self, db: Connection, begin: str) -> None:
        """Begin a transaction.

        Raises:
            ReplacedError: another gallery than the one that `hold` saw has this name now, or its vectors have become
                those of another model.
        """
        if self._identity is None:
            db.execute(begin)
            return
        cursor = db.execute(f"{begin}; {self._wait}; {self._identify}")  # one message to the server
        while cursor.nextset():
            pass
        found = cursor.fetchone()
        if found is None or (self._server, *found) != self._identity:
            same = found is not None and (self._server, found[0]) == self._identity[:2]
            what = "its vectors are those of another model now" if same else "another gallery has this name now"
            raise ReplacedError(f"{self.location}: {what}.", "Open it again.")

    def no_extension(self) -> InputError:
        """Return the error for a database without pgvector."""
        version = self._alive().info.server_version // 10000
        return InputError(
            f"{self.location}: this database has no extension 'vector' (pgvector).", INSTALL.format(version=version)
        )

    def reading(self, work: Callable[[Connection], Result], settings: str = "") -> Result:
        """Call `work` in a transaction that sees one moment; once more if the connection is lost meanwhile.

        Args:
            work: has no effects but its result.
            settings: SQL to run first, such as "SET LOCAL ...".
        """
        begin = f"{READ}; {settings}" if settings else READ
        with self._mutex, self.plain_errors():
            try:
                return self._transaction(begin, work)
            except psycopg.OperationalError as error:
                if not (self._lost or isinstance(error, errors.SerializationFailure)):
                    raise
                return self._transaction(begin, work)

    def writing(self, work: Callable[[Connection], Result]) -> Result:
        """Call `work` in a transaction that is durable on return and undone on an error.

        If another writer's change to the same rows undoes the transaction, it is repeated.

        Raises:
            InputError: the store is open for reading, or the connection was lost. The message says whether the change
                was made.
        """
        self.check_writes()
        with self._mutex, self.plain_errors():
            for left in reversed(range(MAX_TRIES)):
                try:
                    return self._transaction(WRITE, work, changing=True)
                except (errors.DeadlockDetected, errors.SerializationFailure, errors.UniqueViolation):
                    if not left:
                        raise
                    time.sleep(random.uniform(0, 0.05))  # not at the same time as the other writer
                except psycopg.OperationalError as error:
                    if not self._lost or error.sqlstate in MEANINGS:
                        raise
                    raise self._lost_error("Nothing of this change is kept.", "Run it again.") from None
        raise AssertionError("the last try returns or raises")

    def check_writes(self) -> None:
        """Raise an `InputError` if changes are not allowed."""
        if not self._write:
            raise InputError(f"{self.location}: this gallery is open for reading.", "Open it for writing.")

    @contextmanager
    def plain_errors(self) -> Iterator[None]:
        """Turn errors of the server into an `InputError` that names the gallery."""
        try:
            yield
        except psycopg.Error as error:
            raise _plain(error, self.location, self._parts) from error
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.location}: {error.object!r} is not text that can be stored.", "Rename the file."
            ) from None

    def _transaction(self, begin: str, work: Callable[[Connection], Result], *, changing: bool = False) -> Result:
        db = self._begin(begin)
        try:
            result = work(db)
        except BaseException:
            self._undo(db)
            raise
        try:
            db.execute("COMMIT")
        except psycopg.OperationalError:
            if changing and self._lost:
                raise self._lost_error(
                    "It broke while a change was acknowledged: whether the change is kept is not known.",
                    "Run it again: items that were added are replaced, not doubled.",
                ) from None
            raise
        return result

    def _begin(self, begin: str) -> Connection:
        """Begin a transaction. A connection that was lost since the last transaction is replaced."""
        db = self._alive()
        try:
            self.begin(db, begin)
        except (psycopg.Error, ReplacedError) as error:
            self._undo(db)
            if not self._lost or isinstance(error, ReplacedError):
                raise
            db = self._alive()
            self.begin(db, begin)
        return db

    def _alive(self) -> Connection:
        if self._db is None or self._db.closed:
            self._db = self.connect()
        return self._db

    @property
    def _lost(self) -> bool:
        return self._db is None or self._db.closed

    def _undo(self, db: Connection) -> None:
        with suppress(psycopg.Error):
            if not db.closed:
                db.execute("ROLLBACK")
                return
        db.close()

    def _lost_error(self, known: str, remedy: str) -> InputError:
        return InputError(f"{self.location}: the connection to the server was lost. {known}", remedy)


# Errors and locations in plain words, without passwords

SECRETS = ("password", "sslpassword", "oauth_client_secret")


# A URL as libpq parses it: the user part ends at the first "@", and a "/" before that begins the name of the database.
URL = re.compile(r"postgres(?:ql)?://(?:[^@/]*@)?([^@?/]*)(/[^@?]*)?(\?.*)?", re.DOTALL)


HOSTS = re.compile(r"(?:\[[^\]]*\]|[^:,\[\]]*)(?::\d*)?(?:,(?:\[[^\]]*\]|[^:,\[\]]*)(?::\d*)?)*")


KEPT = "All acknowledged changes are kept"


# By SQLSTATE: what was wrong, and what to do. https://www.postgresql.org/docs/current/errcodes-appendix.html
MEANINGS = {
    "3F000": ("the gallery is no longer there", "Check its name, or restore a backup of it."),
    "42P01": ("the gallery, or a table of it, is no longer there", "Check its name, or restore a backup of it."),
    "42501": ("this role may not do that ({text})", "Grant it what the how-to 'Keep a gallery in PostgreSQL' lists."),
    "25006": ("this server accepts no changes; it may be a replica", "Connect to the primary server."),
    "53100": ("the server's disk is full ({text}). " + KEPT, "Free some space there and run it again."),
    "53200": ("the server is out of memory ({text}). " + KEPT, "Lower work_mem or maintenance_work_mem there."),
    "53300": (
        "the server has no connection left ({text})",
        "Close some, raise max_connections, or use a pooler.",
    ),
    "25P03": (
        "the server ended a transaction that took too long ({text})",
        "Raise idle_in_transaction_session_timeout.",
    ),
    "54000": ("a path or label is too long to be stored ({text})", "Shorten it: 2,600 bytes are safe."),
    "57014": ("the server cancelled the statement ({text})", "Raise statement_timeout for this role, or run it again."),
    "55P03": ("a row or table was locked by another program for too long ({text})", "Run it again."),
    "40P01": ("other writers are changing the same items ({text})", "Run it again."),
    "40001": ("the server cancelled the statement in favour of others ({text})", "Run it again."),
    "23505": ("other writers keep changing the same paths ({text})", "Run it again."),
    "22021": ("a path, label or value is not text that PostgreSQL can store ({text})", "Leave it out or rename it."),
    "22P05": ("a label or metadata are not text that PostgreSQL can store ({text})", "Leave it out."),
    "22P02": ("a label or metadata are not text that PostgreSQL can store ({text})", "Leave it out."),
    "22003": ("a number is too large to be stored ({text})", "Leave it out."),
    "58030": ("the server's disk failed to read or write ({text}). " + KEPT, "Check the server's disk."),
    "XX001": ("the server found damaged data ({text})", "Restore a backup."),
    "XX002": ("the server found a damaged index ({text})", "Make it again: lookalike gallery compact"),
}


SHUTDOWN = ("57P01", "57P02", "57P03")


def parse(dsn: str) -> dict[str, Any]:
    """Parse a connection string.

    Raises:
        InputError: it cannot be parsed. The message does not repeat it: it may hold a password.
    """
    try:
        if dsn.startswith(("postgresql://", "postgres://")):
            _check_url(dsn)
        return dict(conninfo.conninfo_to_dict(dsn))
    except (psycopg.ProgrammingError, ValueError):
        pass
    raise InputError(  # outside the handler: the driver's error, which holds the string, must not be its context
        "the connection string of the PostgreSQL server cannot be read.",
        "Write postgresql://USER@HOST:PORT/DATABASE. In a password, / is %2F, @ is %40, # is %23 and % is %25; Better"
        " keep the password in PGPASSWORD or ~/.pgpass.",
    )


def _check_url(url: str) -> None:
    """Raise a `ValueError` for a URL whose password is not percent-encoded.

    A part of it would be taken for a host, port or database, and shown in messages.
    """
    found = URL.fullmatch(url)
    if found is None or not HOSTS.fullmatch(found[1]):
        raise ValueError


def shown(parts: dict[str, Any], name: str) -> str:
    """Return the location of a gallery for messages: a URL without password."""
    user = f"{parts['user']}@" if parts.get("user") else ""
    host, port = str(parts.get("host") or ""), f":{parts['port']}" if parts.get("port") else ""
    socket = f"?host={host}" if host.startswith("/") else ""
    return f"postgresql://{user}{'' if socket else host}{port}/{parts.get('dbname') or ''}{socket}#{name}"


def without_secrets(text: str, parts: dict[str, Any]) -> str:
    """Return a message of the driver in one line, without passwords."""
    secrets = [str(parts[key]) for key in SECRETS if parts.get(key)] + [os.environ.get("PGPASSWORD", "")]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return " ".join(text.split()).rstrip(".")


def _plain(error: psycopg.Error, place: str, parts: dict[str, Any]) -> InputError:
    """Return the error for a person. Errors that are bugs, such as wrong SQL, are raised as they are."""
    text = without_secrets(error.diag.message_primary or str(error), parts)
    state = error.sqlstate or ""
    if state in MEANINGS:
        what, remedy = MEANINGS[state]
        return InputError(f"{place}: {what.format(text=text)}.", remedy)
    if state in SHUTDOWN:
        return InputError(f"{place}: the server is shutting down or starting ({text}).", "Run it again once it is up.")
    if isinstance(error, psycopg.OperationalError) and not state:
        return InputError(f"{place}: the connection to the server was lost ({text}).", "Run it again.")
    if isinstance(error, psycopg.DataError) and not state:
        return InputError(f"{place}: {text}.", "Leave it out or rename it.")
    if isinstance(error, psycopg.ProgrammingError | psycopg.InterfaceError):
        raise error
    return InputError(f"{place}: PostgreSQL says: {text} ({state or type(error).__name__}).", "See the server's log.")


# Vectors between NumPy and pgvector, in the binary form of both of its types: dimension, a zero, the numbers. The
# adapters of the package pgvector take 2.6 times as long, and find the types by the search path.

HEADER = struct.Struct(">HH")


MIN_VERSION = (0, 8)  # of pgvector: it has iterative scans, which filtered searches need


@dataclass(frozen=True)
class Half:
    """(D,) float16, sent as `halfvec`."""

    numbers: NDArray[np.float16]


@dataclass(frozen=True)
class Full:
    """(D,) float32, sent as `vector`."""

    numbers: NDArray[np.float32]


@dataclass(frozen=True)
class Extension:
    """The extension pgvector of a database: its version, its schema, and the oids of its two types."""

    version: str
    schema: str
    halfvec: int
    vector: int


def find_extension(db: psycopg.Connection[Any]) -> Extension | None:
    """Return the pgvector that is installed in a database; None if it is not.

    Raises:
        InputError: its version is too old.
    """
    found = db.execute(
        "SELECT e.extversion, n.nspname, h.oid::bigint, v.oid::bigint"
        " FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
        " LEFT JOIN pg_catalog.pg_type h ON h.typnamespace = n.oid AND h.typname = 'halfvec'"
        " LEFT JOIN pg_catalog.pg_type v ON v.typnamespace = n.oid AND v.typname = 'vector'"
        " WHERE e.extname = 'vector'"
    ).fetchone()
    if found is None:
        return None
    if tuple(int(part) for part in found[0].split(".")[:2]) < MIN_VERSION:
        raise InputError(
            f"database '{db.info.dbname}': its extension 'vector' has version {found[0]}, and 0.8 or newer is needed.",
            "Install a newer pgvector on the server, then, as the extension's owner: ALTER EXTENSION vector UPDATE",
        )
    return Extension(*found)


def register(db: psycopg.Connection[Any], extension: Extension) -> None:
    """Register `Half` and `Full` with a connection, and read `halfvec` as (D,) little-endian float16."""
    half = type("HalfDumper", (_HalfDumper,), {"oid": extension.halfvec})
    full = type("FullDumper", (_FullDumper,), {"oid": extension.vector})
    db.adapters.types.add(psycopg.types.TypeInfo("halfvec", extension.halfvec, 0))  # its name, for COPY
    db.adapters.register_dumper(Half, half)
    db.adapters.register_dumper(Full, full)
    db.adapters.register_loader(extension.halfvec, _HalfLoader)


class _HalfDumper(adapt.Dumper):
    format = pq.Format.BINARY

    def dump(self, obj: Half) -> bytes:
        return HEADER.pack(len(obj.numbers), 0) + obj.numbers.astype(">f2").tobytes()


class _FullDumper(adapt.Dumper):
    format = pq.Format.BINARY

    def dump(self, obj: Full) -> bytes:
        return HEADER.pack(len(obj.numbers), 0) + obj.numbers.astype(">f4").tobytes()


class _HalfLoader(adapt.Loader):
    format = pq.Format.BINARY

    def load(self, data: Any) -> NDArray[np.float16]:
        return np.frombuffer(bytes(data), ">f2", offset=HEADER.size).astype("<f2")
