"""Rows of a store in batches, with their vectors, also while somebody else removes some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.search.store.base import Row, Store

ItemT = TypeVar("ItemT")


def batches(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """The items, `size` at a time; the last batch may be smaller.

    >>> list(batches(range(5), 2))
    [[0, 1], [2, 3], [4]]
    """
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def with_vectors(store: Store, rows: Sequence[Row]) -> tuple[list[Row], NDArray[np.float32]]:
    """Those of the rows that are still there, and their vectors, (rows, D) float32.

    Raises:
        InputError: the store cannot be read.
    """
    there = list(rows)
    while True:
        ids = [row.id for row in there]
        try:
            return there, store.vectors(ids)
        except InputError:
            still = [row for row in store.get(ids) if row is not None]
            if len(still) == len(there):  # none was removed: it is something else
                raise
            there = still
