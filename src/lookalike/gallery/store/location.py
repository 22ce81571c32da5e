"""The location of a gallery: a folder, or a name in a PostgreSQL database, written URL#NAME."""

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
    """A gallery in a PostgreSQL database: the URL of the database and the name of the gallery."""

    url: str = field(repr=False)  # may contain a password
    name: str

    def __str__(self) -> str:
        """Return the location as it was given, without a password."""
        scheme, _, rest = OPTION.sub(_without_secret, self.url).partition("://")
        who, at, where = rest.rpartition("@")
        return f"{scheme}://{who.partition(':')[0]}{at}{where}#{self.name}"


def parse_location(location: str | Path) -> Path | PostgresLocation:
    """Parse a location: a PostgreSQL URL with "#" and the name of a gallery at its end, otherwise a folder.

    Raises:
        InputError: a URL without a name.
    """
    text = str(location)
    if not SERVER.match(text):
        return Path(location).expanduser()
    url, _, name = text.rpartition("#")
    if not url or not name:
        shown = PostgresLocation(text.rstrip("#"), "NAME")
        raise InputError(f"{str(shown).removesuffix('#NAME')}: no gallery is named.", f"Write {shown}.")
    return PostgresLocation(url, name)


def create_store(location: Path | PostgresLocation, about: GalleryInfo) -> Store:
    """Create an empty store and open it for writing.

    Raises:
        InputError: there is one already, or it cannot be created.
    """
    if isinstance(location, PostgresLocation):
        from lookalike.gallery.store.postgres import PostgresStore

        return PostgresStore.create(location.url, location.name, about)
    from lookalike.gallery.store.sqlite import SqliteStore

    return SqliteStore.create(location, about)


def open_store(location: Path | PostgresLocation, *, write: bool = False) -> Store:
    """Open an existing store.

    Raises:
        InputError: there is none, it is damaged, or it cannot be written.
    """
    if isinstance(location, PostgresLocation):
        from lookalike.gallery.store.postgres import PostgresStore

        return PostgresStore.open(location.url, location.name, write=write)
    from lookalike.gallery.store.sqlite import SqliteStore

    return SqliteStore.open(location, write=write)


def _without_secret(option: re.Match[str]) -> str:
    return f"{option[1]}{option[2]}={COVER}" if is_secret(option[2]) else option[0]
