"""Rows of a picture between Python and the tables of `schema.py`, with the checksums that notice a flipped bit."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.search.store.base import NewRow, Row, Value

COLUMNS = "id, path, digest, size, modified, label, metadata, look"
STORED = f"{COLUMNS}, checksum"
KINDS = ([int, str, bytes, int, int, str, str, int], [int, str, bytes, int, int, NoneType, str, int])  # of `COLUMNS`
CHUNK = 500  # parameters of one statement
TOLERANCE = 1e-3  # of a vector's length
WRAP = 1 << 64  # `look` has 64 bits without a sign, the database's integers have one

LARGEST = (1 << 63) - 1  # of an id, and of every integer that a database keeps

Record = tuple[int, str, bytes, int, int, str | None, str, int]  # the columns, as they are stored
Item = TypeVar("Item")


def record(id: int, row: NewRow) -> Record:
    """What is stored of a new row."""
    metadata = json.dumps(dict(row.metadata), ensure_ascii=False, sort_keys=True) if row.metadata else "{}"
    look = row.look - WRAP if row.look >= WRAP // 2 else row.look
    return (id, row.path, row.digest, row.size, row.modified, row.label, metadata, look)


def row_of(record: Sequence[Any], database: object) -> Row:
    """The row that was stored.

    Args:
        record: `STORED` of a row.
        database: its file, for messages.

    Raises:
        InputError: it is not what was stored, or what no gallery stores.
    """
    *values, expected = record
    if fault := fault_of_record(values, expected):
        raise InputError(
            f"{shown(values[1])}: {fault} in {database}.",
            f"Remove it with 'lookalike gallery remove GALLERY --id {values[0]}', and add the picture again.",
        )
    id, path, digest, size, modified, label, text, look = values
    return Row(id, path, digest, size, modified, label, metadata_of(text), look % WRAP)


def fault_of_record(values: Sequence[Any], expected: object) -> str:
    """What is wrong with what is stored of a row, by its checksum and the kinds of its values; empty: nothing.

    Args:
        values: `COLUMNS` of it, as they are stored.
        expected: its checksum.
    """
    fault = f"what is stored of it (id {values[0]}) is damaged"
    kinds = [type(value) for value in values]
    if kinds not in KINDS or checksum_of_record(values) != expected or values[0] < 1:
        return fault
    try:
        metadata_of(values[6])
    except ValueError:
        return fault
    return ""


def metadata_of(text: str) -> dict[str, Value]:
    """Metadata as they are stored.

    Raises:
        ValueError: not an object of text, finite numbers, true, false and null.
    """
    if text == "{}":
        return {}
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(tree, dict):
        raise ValueError("no object")
    for value in tree.values():
        if value is not None and not isinstance(value, str | int | float):
            raise ValueError("neither text nor a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("not finite")
    return tree


def shown(path: object) -> str:
    """A row's path in a message; of a damaged row it may be anything."""
    return path if isinstance(path, str) and path else f"{path!r:.60}"


def checksum_of_record(record: Sequence[Any]) -> int:
    """CRC-32 of all that is stored of a row but its vector and thumbnail."""
    return zlib.crc32(repr(tuple(record)).encode("utf-8", "surrogatepass"))


def checksum(id: int, data: bytes) -> int:
    """CRC-32 of a row's vector or thumbnail; with its id, so that a row with another's bytes is noticed as well."""
    return zlib.crc32(data, id & 0xFFFFFFFF)


def kept_vectors(rows: Sequence[NewRow], dim: int) -> NDArray[np.float16]:
    """(N, D) float16, as they are stored.

    Raises:
        InputError: another dimension, not of length 1, or not finite.
    """
    for row in rows:
        if np.shape(row.vector) != (dim,):
            raise InputError(
                f"{row.path}: its vector has the shape {np.shape(row.vector)}, and this gallery's have {dim} numbers.",
                "Use the model that the gallery was made with.",
            )
    vectors = np.array([row.vector for row in rows], np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    if not (good := np.abs(lengths - 1) <= TOLERANCE).all():  # False for NaN as well
        worst = int(np.argmin(good))
        raise InputError(
            f"{rows[worst].path}: its vector has the length {lengths[worst]:.4g}, not 1.", "Normalise it to length 1."
        )
    kept: NDArray[np.float16] = (vectors / lengths[:, None]).astype("<f2")
    return kept


def checked_queries(queries: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """(Q, D) float32 of length 1; one query of shape (D,) becomes (1, D).

    Raises:
        InputError: another dimension, or not finite.
    """
    queries = np.atleast_2d(np.asarray(queries, np.float32))
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise InputError(
            f"a query has the shape {queries.shape[1:]}, and this gallery's vectors have {dim} numbers.",
            "Use the model that the gallery was made with.",
        )
    if not np.isfinite(queries).all():
        raise InputError("a query is not finite.", "Look at the model or the picture that it came from.")
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    unit: NDArray[np.float32] = queries / lengths
    return unit


def ids_of(ids: Iterable[int]) -> list[int]:
    """Those that a row may have: a larger number, which no database takes, is the id of no row."""
    return [number for number in map(int, ids) if 0 < number <= LARGEST]


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of at most `CHUNK`, as many as one statement takes parameters."""
    everything = list(items)
    for start in range(0, len(everything), CHUNK):
        yield everything[start : start + CHUNK]


def marks(items: Sequence[object]) -> str:
    """The place holders of a statement."""
    return ",".join("?" * len(items))
