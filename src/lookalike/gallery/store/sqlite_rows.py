"""Rows of a picture between Python and the tables of `schema.py`, with the checksums that notice a flipped bit."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType
from typing import Any, TypeVar

from lookalike.errors import InputError
from lookalike.gallery.store.base import GalleryItem, NewItem, Value
from lookalike.gallery.store.checks import WRAP

COLUMNS = "id, path, digest, size, modified, label, metadata, look"


STORED = f"{COLUMNS}, checksum"


KINDS = ([int, str, bytes, int, int, str, str, int], [int, str, bytes, int, int, NoneType, str, int])  # of `COLUMNS`


CHUNK = 500  # parameters of one statement


LARGEST = (1 << 63) - 1  # of an id, and of every integer that a database keeps


Record = tuple[int, str, bytes, int, int, str | None, str, int]  # the columns, as they are stored


Item = TypeVar("Item")


def record(id: int, row: NewItem) -> Record:
    """What is stored of a new row."""
    metadata = json.dumps(dict(row.metadata), ensure_ascii=False, sort_keys=True) if row.metadata else "{}"
    look = row.dhash - WRAP if row.dhash >= WRAP // 2 else row.dhash
    return (id, row.path, row.digest, row.size, row.modified, row.label, metadata, look)


def row_of(record: Sequence[Any], database: object) -> GalleryItem:
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
    return GalleryItem(id, path, digest, size, modified, label, metadata_of(text), look % WRAP)


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
