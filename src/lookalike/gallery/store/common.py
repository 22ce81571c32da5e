"""What both stores share: the checks of vectors and filters, the order of results, the threshold."""

from __future__ import annotations

import json
import math
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import (
    AnyValue,
    FailedFile,
    Filter,
    GalleryInfo,
    GalleryItem,
    NewItem,
    SearchResult,
    Value,
)

EXACT_BELOW = 10_000  # items up to which a search compares the query with all of them: 1 ms at most
PAGE = 1000  # items in memory while all of them are read
MAX_INTEGER = (1 << 63) - 1  # largest id, and largest integer of both databases
UNSIGNED = 1 << 64  # a dhash has 64 bits without a sign; the databases' integers have a sign
LENGTH_TOLERANCE = 1e-3  # of a vector that should have length 1
TIE = 1e-6  # scores that differ by less are equal

Result = TypeVar("Result")


class Reader(ABC):
    """Reads the items of a gallery as of one moment; see `Snapshot`. For one thread."""

    about: GalleryInfo

    def __len__(self) -> int:
        return self.count()

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Return items in the order of the ids; None for ids that do not exist."""
        found = self.items(ids)
        return [found.get(int(id)) for id in ids]

    def thumbnails(self, ids: Sequence[int]) -> list[bytes]:
        """Return thumbnails in the order of the ids; empty where there is none."""
        found = self.jpegs(ids)
        return [found.get(int(id), b"") for id in ids]

    @abstractmethod
    def items(self, ids: Iterable[int]) -> dict[int, GalleryItem]:
        """Return the items of those ids that exist, by id."""

    @abstractmethod
    def items_with(self, column: str, values: Iterable[str] | Iterable[bytes]) -> list[GalleryItem]:
        """Return the items whose column ("path", "digest") has one of these values."""

    @abstractmethod
    def jpegs(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the thumbnails of those items that have one, by id."""

    @abstractmethod
    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of items; see `Snapshot.vectors`."""

    @abstractmethod
    def count(self, filter: Filter | None = None) -> int:
        """Return the number of items that pass a filter."""

    @abstractmethod
    def labels(self, most: int) -> list[tuple[str, int]]:
        """Return the most frequent labels; see `Store.labels`."""

    @abstractmethod
    def rejected(self) -> list[FailedFile]:
        """Return the files that could not be added, by path."""


AnyReader = TypeVar("AnyReader", bound=Reader)


class BaseStore(ABC, Generic[AnyReader]):
    """The methods that both stores have in common; see `Store`."""

    about: GalleryInfo

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.count()

    @abstractmethod
    def close(self) -> None:
        """Close the store."""

    @abstractmethod
    def _read(self, work: Callable[[AnyReader], Result]) -> Result:
        """Call `work` with a reader that sees one moment."""

    @abstractmethod
    def _insert(self, items: Sequence[NewItem], vectors: NDArray[np.float16]) -> list[int]:
        """Add items with different paths and return their ids. `vectors`: (N, D) float16."""

    @abstractmethod
    def _nearest(
        self, queries: NDArray[np.float32], k: int, filter: Filter | None, *, exact: bool
    ) -> list[SearchResult]:
        """Return the k nearest items of each query, (Q, D) float32 of length 1."""

    def add(self, rows: Sequence[NewItem]) -> list[int]:
        """Add items, all or none, and return their ids; see `Store.add`."""
        last = {row.path: row for row in rows}
        items = list(last.values())
        ids = dict(zip(last, self._insert(items, stored_vectors(items, self.about.dim)), strict=True))
        return [ids[row.path] for row in rows]

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Return items in the order of the ids; None for ids that do not exist."""
        return self._read(lambda reader: reader.get(ids))

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of items; see `Store.vectors`."""
        return self._read(lambda reader: reader.vectors(ids))

    def thumbnail(self, id: int) -> bytes | None:
        """Return the thumbnail of an item, a small JPEG; None if it has none or does not exist."""
        return self._read(lambda reader: reader.jpegs([id])).get(int(id))

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """Return the items of those paths that exist."""
        return {item.path: item for item in self._read(lambda reader: reader.items_with("path", paths))}

    def by_digest(self, digests: Sequence[bytes]) -> dict[bytes, GalleryItem]:
        """Return the item with the lowest id of each digest that exists."""
        found = self._read(lambda reader: reader.items_with("digest", digests))
        return {item.digest: item for item in sorted(found, key=lambda item: item.id, reverse=True)}

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of items that pass a filter."""
        return self._read(lambda reader: reader.count(filter))

    def labels(self, most: int) -> list[tuple[str, int]]:
        """Return the most frequent labels; see `Store.labels`."""
        return self._read(lambda reader: reader.labels(most))

    def rejected(self) -> list[FailedFile]:
        """Return the files that could not be added, by path."""
        return self._read(lambda reader: reader.rejected())

    def search(
        self,
        queries: NDArray[np.float32],
        k: int = 10,
        *,
        filter: Filter | None = None,
        threshold: float | None = None,
        exact: bool = False,
    ) -> list[SearchResult]:
        """Return the items nearest to each query; see `Store.search`."""
        queries = checked_queries(queries, self.about.dim)
        if k < 1:
            raise InputError(f"k is {k}.", "Ask for 1 hit or more.")
        results = self._nearest(queries, k, filter, exact=exact)
        if threshold is None:
            return results
        return [
            replace(result, hits=[hit for hit in result.hits if hit.score >= threshold], threshold=threshold)
            for result in results
        ]


# Vectors, ids and checksums


def stored_vectors(items: Sequence[NewItem], dim: int) -> NDArray[np.float16]:
    """Return the vectors of items as they are stored, (N, D) little-endian float16 of length 1.

    Raises:
        InputError: a vector of another dimension, not of length 1, or not finite.
    """
    for item in items:
        if np.shape(item.vector) != (dim,):
            raise InputError(
                f"{item.path}: its vector has the shape {np.shape(item.vector)}; this gallery stores {dim} numbers.",
                "Use the model that the gallery was created with.",
            )
    vectors = np.array([item.vector for item in items], np.float32).reshape(len(items), dim)
    lengths = np.linalg.norm(vectors, axis=1)
    if not (good := np.abs(lengths - 1) <= LENGTH_TOLERANCE).all():  # False for NaN as well
        worst = int(np.argmin(good))
        raise InputError(
            f"{items[worst].path}: its vector has the length {lengths[worst]:.4g}, not 1.", "Normalise it to length 1."
        )
    stored: NDArray[np.float16] = (vectors / lengths[:, None]).astype("<f2")
    return stored


def unit_halves(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float16]:
    """Return vectors (N, D) of length 1 as they are stored, little-endian float16.

    Raises:
        InputError: they have another dimension, or one does not have length 1 or is not finite.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if vectors.shape[1:] != (dim,) or not (np.abs(lengths - 1) <= LENGTH_TOLERANCE).all():
        raise InputError(f"vectors of shape {vectors.shape} are not {dim} numbers of length 1.", "Normalise them.")
    stored: NDArray[np.float16] = (vectors / lengths).astype("<f2")
    return stored


def checked_queries(queries: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return queries as (Q, D) float32; one query of shape (D,) becomes (1, D).

    Raises:
        InputError: a query of another dimension, not of length 1, or not finite.
    """
    queries = np.atleast_2d(np.asarray(queries, np.float32))
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise InputError(
            f"a query has the shape {queries.shape[1:]}; the vectors of this gallery have {dim} numbers.",
            "Use the model that the gallery was created with.",
        )
    lengths = np.linalg.norm(queries, axis=1)
    if not (good := np.abs(lengths - 1) <= LENGTH_TOLERANCE).all():
        raise InputError(
            f"a query vector has the length {lengths[int(np.argmin(good))]:.4g}, not 1.", "Normalise it to length 1."
        )
    return queries


def cosines(query: NDArray[np.float32], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosines of a query (D,) with vectors (N, D). The order of the vectors does not change a cosine."""
    numbers = query.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors) * (numbers @ numbers))
    found = np.einsum("nd,d->n", vectors, numbers) / np.maximum(lengths, 1e-300)
    return np.clip(found, -1, 1)  # type: ignore[no-any-return]


def checksum(id: int, data: bytes) -> int:
    """Return the CRC-32 of an item's vector or thumbnail. It depends on the id, so exchanged values are noticed too."""
    return zlib.crc32(data, id & 0xFFFFFFFF)


def valid_ids(ids: Iterable[int]) -> list[int]:
    """Return those ids that an item can have. The databases refuse larger numbers."""
    return [number for number in map(int, ids) if 0 < number <= MAX_INTEGER]


def signed(dhash: int) -> int:
    """Return a dhash, 64 bits without a sign, as the databases store it."""
    return dhash - UNSIGNED if dhash >= UNSIGNED // 2 else dhash


# Filters. A value is compared as JSON, in which whole floats are integers: 1.0 equals 1, and True does not.

OWN_COLUMNS = ("label", "path")  # columns of an item; other keys of a filter name its metadata
MAX_KEYS = 100  # of a filter
MAX_VALUES = 10_000  # of all keys of a filter together
MAX_BYTES = 1 << 20  # of the keys and values of a filter, as JSON in UTF-8
MAX_BITS = 13_000  # of an integer: about 3,900 digits


def json_of(value: Value) -> str:
    """Return a value of metadata as it is compared: JSON, with whole floats as integers.

    Raises:
        InputError: not a value that metadata can have.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"metadata and filters cannot have the value {value}.", "Leave it out, or use null.")
        if value.is_integer():
            value = int(value)
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise InputError("metadata and filters cannot have numbers with thousands of digits.", "Round the number.")
    if value is not None and not isinstance(value, str | int | float):
        raise InputError(
            f"metadata and filters cannot have the value {value!r}.", "Use text, numbers, true, false or null."
        )
    return json.dumps(value, ensure_ascii=False)


def values_of(filter: Filter | None) -> dict[str, list[Value] | AnyValue]:
    """Return the values of each key of a filter, without repetitions; or that it must have one.

    Raises:
        InputError: the filter has too many keys, values or bytes, or a value that metadata cannot have.
    """
    found: dict[str, list[Value] | AnyValue] = {}
    count = size = 0
    remedy = "Search with fewer of them at a time."
    for key, wanted in (filter or {}).items():
        values = () if isinstance(wanted, AnyValue) else _listed(wanted)
        count += len(values)
        if len(found) >= MAX_KEYS or count > MAX_VALUES:
            limit = f"{MAX_KEYS} keys" if count <= MAX_VALUES else f"{MAX_VALUES:,} values"
            raise InputError(f"filter by '{key[:80]}': more than {limit} in all.", remedy)
        size += len(key.encode("utf-8", "surrogatepass"))
        size += sum(len(json_of(value).encode("utf-8", "surrogatepass")) for value in values)
        if size > MAX_BYTES:
            raise InputError(
                f"filter by '{key[:80]}': its keys and values have more than {MAX_BYTES >> 20} MiB.", remedy
            )
        once = {(type(value) is bool, value): value for value in values}
        found[key] = wanted if isinstance(wanted, AnyValue) else list(once.values())
    return found


def texts_of(column: str, values: Sequence[Value]) -> list[str]:
    """Return the texts that a filter accepts in a column of its own; numbers and truth values equal no text.

    Labels are stored with composed letters (NFC), so a label is also accepted in this form.
    """
    texts = [value for value in values if isinstance(value, str)]
    composed = [unicodedata.normalize("NFC", text) for text in texts] if column == "label" else []
    return list(dict.fromkeys([*texts, *composed]))


def passes(item: GalleryItem, filter: Filter | None) -> bool:
    """Return whether an item passes a filter."""
    for key, wanted in (filter or {}).items():
        own = item.label if key == "label" else item.path if key == "path" else item.metadata.get(key)
        if isinstance(wanted, AnyValue):
            good = own is not None
        elif key in OWN_COLUMNS:
            values = _listed(wanted)
            good = own in texts_of(key, values) or (own is None and None in values)
        else:
            accepted = [value if value is None else json_of(value) for value in _listed(wanted)]
            good = (None if own is None else json_of(own)) in accepted
        if not good:
            return False
    return True


def _listed(wanted: Value | Sequence[Value]) -> Sequence[Value]:
    return wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]


def filterable(metadata: Mapping[str, Value]) -> list[tuple[str, str]]:
    """Return the keys and values of metadata as filters compare them.

    Null is left out: a filter treats a key that is null and a key that does not exist alike.
    """
    return [(key, json_of(value)) for key, value in metadata.items() if value is not None]
