"""Where a gallery is kept: a folder, or a name in a PostgreSQL database, written URL#NAME."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.errors import COVER, InputError, is_secret
from lookalike.search.store.base import About, Store

SERVER = re.compile(r"postgres(ql)?://", re.IGNORECASE)
OPTION = re.compile(r"([?&])([^?&=]*)=([^&]*)")


@dataclass(frozen=True)
class Server:
    """A gallery in a database: the database's URL, and the gallery's name there."""

    url: str = field(repr=False)  # it may hold a password
    name: str

    def __str__(self) -> str:
        """As it was given, without a password."""
        scheme, _, rest = OPTION.sub(_without_secret, self.url).partition("://")
        who, at, where = rest.rpartition("@")
        return f"{scheme}://{who.partition(':')[0]}{at}{where}#{self.name}"


def place_of(target: str | Path) -> Path | Server:
    """What a target means: a URL of PostgreSQL with "#" and the gallery's name at its end, else a folder.

    Raises:
        InputError: such a URL without a name.
    """
    text = str(target)
    if not SERVER.match(text):
        return Path(target).expanduser()
    url, _, name = text.rpartition("#")
    if not url or not name:
        shown = Server(text.rstrip("#"), "NAME")
        raise InputError(f"{str(shown).removesuffix('#NAME')}: no gallery is named.", f"Write {shown}.")
    return Server(url, name)


def create_store(place: Path | Server, about: About) -> Store:
    """A new store.

    Raises:
        InputError: there is one already, or none can be made there.
    """
    if isinstance(place, Server):
        from lookalike.search.store.postgres import PostgresStore

        return PostgresStore.create(place.url, place.name, about)
    from lookalike.search.store.sqlite import SqliteStore

    return SqliteStore.create(place, about)


def open_store(place: Path | Server, *, write: bool = False) -> Store:
    """The store that is there.

    Raises:
        InputError: none, a damaged one, or one that another process writes to.
    """
    if isinstance(place, Server):
        from lookalike.search.store.postgres import PostgresStore

        return PostgresStore.open(place.url, place.name, write=write)
    from lookalike.search.store.sqlite import SqliteStore

    return SqliteStore.open(place, write=write)


def _without_secret(option: re.Match[str]) -> str:
    return f"{option[1]}{option[2]}={COVER}" if is_secret(option[2]) else option[0]
