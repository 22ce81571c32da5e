"""What the errors of PostgreSQL mean to a person, and how a server is named without its password."""

from __future__ import annotations

import os
import re
from typing import Any

from lookalike.errors import InputError
from lookalike.search.store.pg_driver import conninfo, psycopg

SECRETS = ("password", "sslpassword", "oauth_client_secret")
# A URL as libpq takes it apart: the user's part ends at the first "@", and a "/" before it begins the database's name.
URL = re.compile(r"postgres(?:ql)?://(?:[^@/]*@)?([^@?/]*)(/[^@?]*)?(\?.*)?", re.DOTALL)
HOSTS = re.compile(r"(?:\[[^\]]*\]|[^:,\[\]]*)(?::\d*)?(?:,(?:\[[^\]]*\]|[^:,\[\]]*)(?::\d*)?)*")
KEPT = "What was acknowledged is kept"

# By SQLSTATE: what was wrong, and what to do. https://www.postgresql.org/docs/current/errcodes-appendix.html
MEANINGS = {
    "3F000": ("the gallery is no longer there", "Look at its name, or restore a backup of it."),
    "42P01": ("the gallery, or a table of it, is no longer there", "Look at its name, or restore a backup of it."),
    "42501": ("this role may not do that ({text})", "Grant it what the how-to 'Keep a gallery in PostgreSQL' lists."),
    "25006": ("this server takes no changes, as a replica does not", "Connect to the primary server."),
    "53100": ("the server's disk is full ({text}). " + KEPT, "Free some space there and run it again."),
    "53200": ("the server is out of memory ({text}). " + KEPT, "Lower work_mem or maintenance_work_mem there."),
    "53300": (
        "the server has no connection left ({text})",
        "Close some, raise max_connections, or put a pooler before.",
    ),
    "25P03": (
        "the server ended a reading that went on for long ({text})",
        "Raise idle_in_transaction_session_timeout.",
    ),
    "54000": ("a path or label is too long to be kept ({text})", "Shorten it: 2,600 bytes are safe."),
    "57014": ("the server cancelled the statement ({text})", "Raise statement_timeout for this role, or run it again."),
    "55P03": ("a row or table was held by another for too long ({text})", "Run it again."),
    "40P01": ("other writers are at work on the same rows ({text})", "Run it again."),
    "40001": ("the server cancelled the statement in favour of others ({text})", "Run it again."),
    "23505": ("other writers keep changing the same paths ({text})", "Run it again."),
    "22021": ("a path, label or value is not text that PostgreSQL can keep ({text})", "Leave it out or rename it."),
    "22P05": ("a label or metadata are not text that PostgreSQL can keep ({text})", "Leave it out."),
    "22P02": ("a label or metadata are not text that PostgreSQL can keep ({text})", "Leave it out."),
    "22003": ("a number is too large to be kept ({text})", "Leave it out."),
    "58030": ("the server's disk did not take or give what it should ({text}). " + KEPT, "Look at the server's disk."),
    "XX001": ("the server found damaged data ({text})", "Restore a backup."),
    "XX002": ("the server found a damaged index ({text})", "Make it anew: lookalike gallery compact"),
}
SHUT = ("57P01", "57P02", "57P03")


def parse(dsn: str) -> dict[str, Any]:
    """The parts of a connection string.

    Raises:
        InputError: it is none. Its text is not repeated: it may hold a password.
    """
    try:
        if dsn.startswith(("postgresql://", "postgres://")):
            _check_url(dsn)
        return dict(conninfo.conninfo_to_dict(dsn))
    except (psycopg.ProgrammingError, ValueError):
        pass
    raise InputError(  # not in the handler: the driver's error, which holds the string, is not to hang on to this one
        "the connection string of the PostgreSQL server cannot be read.",
        "Write postgresql://USER@HOST:PORT/DATABASE. In a password, / is %2F, @ is %40, # is %23 and % is %25; better"
        " keep it in PGPASSWORD or ~/.pgpass.",
    )


def _check_url(url: str) -> None:
    """Raise a `ValueError` where a password that is not percent-encoded would be taken for a host, port or database,
    and named as such in messages.
    """
    found = URL.fullmatch(url)
    if found is None or not HOSTS.fullmatch(found[1]):
        raise ValueError


def shown(parts: dict[str, Any], name: str) -> str:
    """A gallery's place for a person to read: a URL without password."""
    user = f"{parts['user']}@" if parts.get("user") else ""
    host, port = str(parts.get("host") or ""), f":{parts['port']}" if parts.get("port") else ""
    socket = f"?host={host}" if host.startswith("/") else ""
    return f"postgresql://{user}{'' if socket else host}{port}/{parts.get('dbname') or ''}{socket}#{name}"


def without_secrets(text: str, parts: dict[str, Any]) -> str:
    """A message of the driver in one line, with any password in it covered."""
    secrets = [str(parts[key]) for key in SECRETS if parts.get(key)] + [os.environ.get("PGPASSWORD", "")]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return " ".join(text.split()).rstrip(".")


def said(error: psycopg.Error, place: str, parts: dict[str, Any]) -> InputError:
    """The error for a person. Bugs are not for them: wrong SQL and wrong use of the driver come back as they are."""
    text = without_secrets(error.diag.message_primary or str(error), parts)
    state = error.sqlstate or ""
    if state in MEANINGS:
        what, remedy = MEANINGS[state]
        return InputError(f"{place}: {what.format(text=text)}.", remedy)
    if state in SHUT:
        return InputError(f"{place}: the server is shutting down or starting ({text}).", "Run it again once it is up.")
    if isinstance(error, psycopg.OperationalError) and not state:
        return InputError(f"{place}: the connection to the server was lost ({text}).", "Run it again.")
    if isinstance(error, psycopg.DataError) and not state:
        return InputError(f"{place}: {text}.", "Leave it out or rename it.")
    if isinstance(error, psycopg.ProgrammingError | psycopg.InterfaceError):
        raise error
    return InputError(f"{place}: PostgreSQL says: {text} ({state or type(error).__name__}).", "See the server's log.")
