"""The connection of a store to its server: opened, used in whole transactions, and opened again when it was lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from lookalike.errors import InputError
from lookalike.search.store import pg_errors
from lookalike.search.store.base import ReplacedError
from lookalike.search.store.pg_driver import errors, psycopg, sql
from lookalike.search.store.pg_vectors import Extension, find_extension, register

# What a connection string does not say: give up on a server that does not answer, and notice one that vanished.
DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "fallback_application_name": "lookalike",
    "client_encoding": "utf8",
}
READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off"
WRITE = (  # a server may answer before the disk has; a stricter setting than "on" is left as it is
    "BEGIN ISOLATION LEVEL READ COMMITTED;"
    " SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
TRIES = 8  # of a change that other writers got in the way of
# Which gallery it is, and in which server; until the transaction ends, nobody can drop it. A name that was dropped and
# made anew has another table of this name, but it may be of the same number in a server that was set up anew.
IDENTITY = "SELECT tableoid::bigint FROM {}.gallery"
SERVER = "SELECT system_identifier FROM pg_catalog.pg_control_system()"
INSTALL = (
    "Install pgvector on the server (Debian, Ubuntu: apt install postgresql-{version}-pgvector),"
    " then as a superuser of this database: CREATE EXTENSION vector"
)

Result = TypeVar("Result")
Connection = psycopg.Connection[Any]


class Link:
    """One connection. Threads take turns. Statements are not prepared on the server and settings last for a
    transaction, so that a pooler may stand between.

    Args:
        dsn: of the server, a URL or `key=value` words; what it leaves out comes from libpq's environment variables.
        name: of the gallery, for messages.
        write: whether changes are allowed.

    Raises:
        InputError: it cannot be reached.
    """

    def __init__(self, dsn: str, name: str, *, write: bool) -> None:
        self._parts = pg_errors.parse(dsn)
        self.place = pg_errors.shown(self._parts, name)
        self._identify = sql.SQL(IDENTITY).format(sql.Identifier(name)).as_string(None)
        self._identity: tuple[int | None, int] | None = None
        self._server: int | None = None
        self._write = write
        self._turns = threading.RLock()
        self._db: Connection | None = None
        self._closed = False
        self.extension: Extension | None = None
        self._alive()

    def close(self) -> None:
        """Close the connection, for good."""
        with self._turns:
            self._closed = True
            if self._db is not None:
                self._db.close()
                self._db = None

    def connect(self) -> Connection:
        """Another connection to the same server, in autocommit; the caller closes it."""
        if self._closed:
            raise InputError(f"{self.place}: this store is closed.", "Open it again.")
        try:
            db = psycopg.connect(**{**DEFAULTS, **self._parts}, autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError as error:
            why = pg_errors.without_secrets(str(error), self._parts)
            raise InputError(
                f"{self.place}: the server cannot be used ({why}).",
                "Is it running, and are host, port, database, user and password right?",
            ) from None
        try:
            with self.saying():
                self.learn(db)
        except BaseException:
            db.close()
            raise
        return db

    def learn(self, db: Connection) -> None:
        """See whether the database has pgvector, and teach the connection its types."""
        self.extension = find_extension(db)
        if self.extension is not None:
            register(db, self.extension)
        try:
            self._server = db.execute(SERVER).fetchall()[0][0]
        except errors.InsufficientPrivilege:
            self._server = None

    def hold(self, db: Connection) -> None:
        """From now on take no gallery but the one that this transaction sees for this one."""
        self._identity = self._server, db.execute(self._identify).fetchall()[0][0]

    def begin(self, db: Connection, begin: str) -> None:
        """Begin a transaction.

        Raises:
            ReplacedError: what has the gallery's name now is not the one that `hold` saw.
        """
        if self._identity is None:
            db.execute(begin)
            return
        cursor = db.execute(f"{begin}; {self._identify}")  # one message: the line is gone over once
        while cursor.nextset():
            pass
        found = cursor.fetchone()
        if found is None or (self._server, found[0]) != self._identity:
            raise ReplacedError(f"{self.place}: another gallery has this name now.", "Open it again.")

    def no_extension(self) -> InputError:
        """The error for a database without pgvector."""
        version = self._alive().info.server_version // 10000
        return InputError(
            f"{self.place}: this database has no extension 'vector' (pgvector).", INSTALL.format(version=version)
        )

    def reading(self, work: Callable[[Connection], Result], settings: str = "") -> Result:
        """Do `work` in a transaction that sees one moment; again, once, where the connection was lost in it.

        Args:
            work: what to do. It changes nothing but what it returns.
            settings: SQL to run first, such as "SET LOCAL ...".
        """
        begin = f"{READ}; {settings}" if settings else READ
        with self._turns, self.saying():
            try:
                return self._transaction(begin, work)
            except psycopg.OperationalError as error:
                if not (self._lost or isinstance(error, errors.SerializationFailure)):
                    raise
                return self._transaction(begin, work)

    def writing(self, work: Callable[[Connection], Result]) -> Result:
        """Do `work` in a transaction that is durable on return and undone on an error; again from the start where
        another writer's change to the same rows has undone it.

        Raises:
            InputError: it is a reader's, or the connection was lost. The message says what is known of the change.
        """
        self.check_writes()
        with self._turns, self.saying():
            for left in reversed(range(TRIES)):
                try:
                    return self._transaction(WRITE, work, changing=True)
                except (errors.DeadlockDetected, errors.SerializationFailure, errors.UniqueViolation):
                    if not left:
                        raise
                    time.sleep(random.uniform(0, 0.05))  # not in step with the other
                except psycopg.OperationalError as error:
                    if not self._lost or error.sqlstate in pg_errors.MEANINGS:
                        raise
                    raise self._cut("Nothing of this change is kept.", "Run it again.") from None
        raise AssertionError("the last try returns or raises")

    def check_writes(self) -> None:
        """Raise an `InputError` where changes are not allowed."""
        if not self._write:
            raise InputError(f"{self.place}: this gallery is open for reading.", "Open it for writing.")

    @contextmanager
    def saying(self) -> Iterator[None]:
        """Errors of the server, within, become an `InputError` that names the gallery."""
        try:
            yield
        except psycopg.Error as error:
            raise pg_errors.said(error, self.place, self._parts) from error
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.place}: {error.object!r} is not text that can be stored.", "Rename the file."
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
                raise self._cut(
                    "It broke while a change was being acknowledged: whether that is kept is not known.",
                    "Run it again: what is there is replaced, not doubled.",
                ) from None
            raise
        return result

    def _begin(self, begin: str) -> Connection:
        """A transaction. A connection that was lost since the last one is replaced: nothing was asked of it yet."""
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

    def _cut(self, known: str, remedy: str) -> InputError:
        return InputError(f"{self.place}: the connection to the server was lost. {known}", remedy)
