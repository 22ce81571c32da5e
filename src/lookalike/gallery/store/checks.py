"""What every store checks of the vectors it is given, and the checksum of a row."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import NewItem

TOLERANCE = 1e-3  # of a vector's length


WRAP = 1 << 64  # `look` has 64 bits without a sign, the database's integers have one


def checksum(id: int, data: bytes) -> int:
    """CRC-32 of a row's vector or thumbnail; with its id, so that a row with another's bytes is noticed as well."""
    return zlib.crc32(data, id & 0xFFFFFFFF)


def kept_vectors(rows: Sequence[NewItem], dim: int) -> NDArray[np.float16]:
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
