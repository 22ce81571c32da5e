"""Vectors between NumPy and pgvector in the binary form that both of its types have: dimension, a zero, the numbers.

Source: `halfvec_recv` and `vector_recv` of pgvector (https://github.com/pgvector/pgvector), all big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.search.store.pg_driver import adapt, pq, psycopg

HEADER = struct.Struct(">HH")
NEEDED = (0, 8)  # of pgvector: filtered searches that go on until they have found enough


@dataclass(frozen=True)
class Half:
    """(D,) float16, to be sent as `halfvec`."""

    numbers: NDArray[np.float16]


@dataclass(frozen=True)
class Full:
    """(D,) float32, to be sent as `vector`."""

    numbers: NDArray[np.float32]


@dataclass(frozen=True)
class Extension:
    """pgvector in a database: its version, the schema that it is in, and the numbers of its two types."""

    version: str
    schema: str
    halfvec: int
    vector: int


def find_extension(db: psycopg.Connection[Any]) -> Extension | None:
    """The pgvector that is installed in a connection's database; None where it is not.

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
    if tuple(int(part) for part in found[0].split(".")[:2]) < NEEDED:
        raise InputError(
            f"database '{db.info.dbname}': its extension 'vector' has version {found[0]}, and 0.8 or newer is needed.",
            "Install a newer pgvector on the server, then, as the extension's owner: ALTER EXTENSION vector UPDATE",
        )
    return Extension(*found)


def register(db: psycopg.Connection[Any], extension: Extension) -> None:
    """Teach a connection to send `Half` and `Full`, and to read `halfvec` as (D,) little-endian float16."""
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
