"""Where a gallery is kept: a folder, or a name in a PostgreSQL database, written URL#NAME."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.errors import COVER, InputError, is_secret
from lookalike.gallery.store.base import GalleryInfo, Store

SERVER = re.compile(r"postgres(ql)?://", re.IGNORECASE)
OPTION = re.compile(r"([?&])([^?&=]*)=([^&]*)")


@dataclass(frozen=True)
class PostgresLocation:
    """A gallery in a database: the database's URL, and the gallery's name there."""

    url: str = field(repr=False)  # it may hold a password
    name: str

    def __str__(self) -> str:
        """As it was given, without a password."""
        scheme, _, rest = OPTION.sub(_without_secret, self.url).partition("://")
        who, at, where = rest.rpartition("@")
        return f"{scheme}://{who.partition(':')[0]}{at}{where}#{self.name}"


def parse_location(target: str | Path) -> Path | PostgresLocation:
    """What a target means: a URL of PostgreSQL with "#" and the gallery's name at its end, else a folder.

    Raises:
        InputError: such a URL without a name.
    """
    text = str(target)
    if not SERVER.match(text):
        return Path(target).expanduser()
    url, _, name = text.rpartition("#")
    if not url or not name:
        shown = PostgresLocation(text.rstrip("#"), "NAME")
        raise InputError(f"{str(shown).removesuffix('#NAME')}: no gallery is named.", f"Write {shown}.")
    return PostgresLocation(url, name)


def create_store(place: Path | PostgresLocation, about: GalleryInfo) -> Store:
    """A new store.

    Raises:
        InputError: there is one already, or none can be made there.
    """
    if isinstance(place, PostgresLocation):
        from lookalike.gallery.store.postgres import PostgresStore

        return PostgresStore.create(place.url, place.name, about)
    from lookalike.gallery.store.sqlite import SqliteStore

    return SqliteStore.create(place, about)


def open_store(place: Path | PostgresLocation, *, write: bool = False) -> Store:
    """The store that is there.

    Raises:
        InputError: none, a damaged one, or one that another process writes to.
    """
    if isinstance(place, PostgresLocation):
        from lookalike.gallery.store.postgres import PostgresStore

        return PostgresStore.open(place.url, place.name, write=write)
    from lookalike.gallery.store.sqlite import SqliteStore

    return SqliteStore.open(place, write=write)


def _without_secret(option: re.Match[str]) -> str:
    return f"{option[1]}{option[2]}={COVER}" if is_secret(option[2]) else option[0]
