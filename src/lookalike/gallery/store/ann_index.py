"""The approximate index: a graph of near neighbours (HNSW; Malkov and Yashunin, arXiv:1603.09320), by usearch.

Its nodes hold int8 copies of the vectors, which need half the memory traffic of float16. Each copy is scaled to the
range of int8; this does not change cosines. Search results are candidates: the caller computes their scores from the
stored vectors.
"""

from __future__ import annotations

import ctypes
import errno
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.hardware import cores

# usearch contains a C++ library of its own. If that is the first one in the process, importing onnxruntime crashes and
# Ray aborts; so the system's comes first.
with suppress(OSError):
    ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)

from usearch.compiled import MetricKind, ScalarKind
from usearch.index import Index

CONNECTIVITY = 24  # neighbours of a node on the upper levels, twice as many on the lowest
EF_CONSTRUCTION = 128  # candidates considered to place a node
EF_SEARCH = 64  # candidates considered to answer a query; twice as many in a large index
LARGE = 200_000  # vectors of a large index
ADDED_AT_A_TIME = 8192  # vectors
SERIAL_FIRST = 1024  # vectors placed by one thread: threads that place the first vectors do not see each other's
CHECKED_NEIGHBOURS = 10  # a placed vector must find itself among so many
EQUAL_DISTANCE = 1e-6  # cosine distance below which two vectors count as equal

Bytes = NDArray[np.uint8]


class HnswIndex:
    """Near neighbours of vectors that are identified by their position, 0 to `len(self)` - 1.

    Args:
        dim: numbers of a vector.
        count: vectors that the index has when it is searched; None for an index that vectors are added to.
    """

    def __init__(self, dim: int, count: int | None = None) -> None:
        self._index = Index(
            ndim=dim,
            metric=MetricKind.Cos,
            dtype=ScalarKind.I8,
            connectivity=CONNECTIVITY,
            expansion_add=EF_CONSTRUCTION,
            expansion_search=_ef_search(count or 0),
            enable_key_lookups=count is None,  # only needed to place a vector again
        )
        self.data = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._index)

    def view(self, data: Bytes) -> None:
        """Use a saved index, the bytes of its file, without a copy. Call `fault_of_saved` first."""
        self._index.view(data.data)
        self.data = data  # usearch keeps no reference

    def load(self, data: Bytes) -> None:
        """Load a copy of a saved index, to add to it. Call `fault_of_saved` first."""
        self._index.load(data.data)

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Add vectors, (N, D), on all cores. They get the next positions."""
        start = 0
        while start < len(vectors):
            serial = len(self) < SERIAL_FIRST
            part = vectors[start : start + (SERIAL_FIRST - len(self) if serial else ADDED_AT_A_TIME)]
            positions = np.arange(len(self), len(self) + len(part), dtype=np.uint64)
            small = _int8(part)
            threads = 1 if serial else cores()
            self._index.add(positions, small, threads=threads)
            if threads > 1:
                self._place_lost(positions, small)
            start += len(part)

    def _place_lost(self, positions: NDArray[np.uint64], small: NDArray[np.int8]) -> None:
        """Place those vectors again, one by one, that a search for themselves does not find.

        Threads that place vectors at the same time lose some of them, and queries near a lost vector lose hits: one in
        250 vectors with more threads than processors, one in some thousands with as many threads as processors.
        """
        self._index.expansion_search = _ef_search(len(self))  # type: ignore[misc]  # its setter stands apart
        found = self._index.search(small, min(CHECKED_NEIGHBOURS, len(self)), threads=cores())
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)  # flat for a single vector
        finds_itself = (keys == positions[:, None]).any(axis=1)
        among_equals = distances[:, -1] < EQUAL_DISTANCE  # more vectors are equal to it than are returned
        for place in np.flatnonzero(~finds_itself & ~among_equals):
            self._index.remove(int(positions[place]))
            self._index.add(positions[place], small[place], threads=1)

    def save(self, path: Path) -> None:
        """Write the index to a file.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self._index.save(path)
        except (RuntimeError, ValueError) as error:
            raise OSError(errno.EIO, str(error), str(path)) from None
        if path.stat().st_size != self._index.serialized_length:
            raise OSError(errno.ENOSPC, "was not written completely", str(path))

    def nearest(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Return the positions of about the `count` vectors nearest to a query (D,); fewer if there are fewer."""
        found = self._index.search(_int8(query[None])[0], min(count, len(self)), threads=1)
        return np.asarray(found.keys).astype(np.int64)


def _ef_search(count: int) -> int:
    """Return the candidates to consider for a query among `count` vectors."""
    return 2 * EF_SEARCH if count > LARGE else EF_SEARCH


def _int8(vectors: NDArray[np.floating]) -> NDArray[np.int8]:
    """Return (N, D) int8: each vector scaled so that its largest number is 127."""
    numbers = np.asarray(vectors, np.float32)
    most = np.abs(numbers).max(axis=1, keepdims=True)
    small: NDArray[np.int8] = np.rint(numbers * (127 / np.maximum(most, 1e-12))).astype(np.int8)
    return small


# A saved index is checked before usearch reads it: usearch trusts the file, and a neighbour that does not exist ends
# the process. The layout of usearch 2 (`index_dense.hpp`, `index.hpp`), numbers little-endian:
#
#     rows, columns   2 × u32; then rows × columns int8, the vectors
#     head            64 bytes: "usearch", version 3 × u16, kinds 4 × u8, u64 present, deleted, dimensions; zeros
#     graph           5 × u64: nodes, neighbours of a node, neighbours on the lowest level, highest level, entry
#     levels          i16 of each node
#     nodes           of each: u64 key, i16 level; for each of its levels u32 count and as many u32 positions as fit

MAGIC = b"usearch"
MAJOR_VERSION = 2
KINDS = (99, 23, 14, 15)  # cosine, int8, keys of 64 bits, positions of 32
HEAD_BYTES, GRAPH_BYTES, NODE_BYTES = 64, 40, 10
MAX_LEVEL = 64
NODES_AT_A_TIME = 8192


def fault_of_saved(data: Bytes, dim: int, count: int) -> str:
    """Return what is wrong with a saved index of vectors at the positions 0 to `count` - 1; empty if it can be used.

    Args:
        data: (L,) uint8, the file.
        dim: numbers of a vector.
        count: vectors in the index.
    """
    start = 8 + count * dim
    if len(data) < start + HEAD_BYTES + GRAPH_BYTES + 2 * count or _numbers(data, 0, 2, "<u4") != [count, dim]:
        return f"is not a graph of {count:,} vectors of {dim} numbers"
    head = data[start : start + HEAD_BYTES].tobytes()
    if head[:7] != MAGIC or head[7:9] != MAJOR_VERSION.to_bytes(2, "little") or tuple(head[13:17]) != KINDS:
        return f"is not a graph that usearch {MAJOR_VERSION} wrote with the settings of a gallery"
    if _numbers(data, start + 17, 3, "<u8") != [count, 0, dim] or any(head[41:]):
        return f"is not a graph of {count:,} vectors"
    start += HEAD_BYTES
    nodes, fewer, more, highest, entry = _numbers(data, start, 5, "<u8")
    if (nodes, fewer, more) != (count, CONNECTIVITY, 2 * CONNECTIVITY) or highest > MAX_LEVEL or entry >= count:
        return "has a wrong head"
    start += GRAPH_BYTES
    levels = np.frombuffer(data[start : start + 2 * count], "<i2").astype(np.int64)
    if levels.min() < 0 or levels.max() > MAX_LEVEL or levels[entry] < highest:
        return "has wrong levels"
    start += 2 * count
    lowest, upper = 4 * (1 + more), 4 * (1 + fewer)  # bytes of the neighbours on a level
    sizes = NODE_BYTES + lowest + upper * levels
    places = start + np.cumsum(sizes) - sizes
    if int(places[-1] + sizes[-1]) != len(data):
        return "does not have the length of its nodes"
    heads = _windows(data, NODE_BYTES)[places]
    keys = heads[:, :8].copy().view("<u8").reshape(-1)
    if not (heads[:, 8:].copy().view("<i2").reshape(-1) == levels).all():
        return "has wrong levels"
    if int(keys.max()) >= count or (np.bincount(keys.astype(np.int64), minlength=count) != 1).any():
        return "does not have each position once"
    if not _neighbours_exist(data, places + NODE_BYTES, more, levels, 0):
        return "has neighbours that do not exist"
    for level in range(1, int(levels.max()) + 1):
        here = np.flatnonzero(levels >= level)
        if not _neighbours_exist(data, places[here] + NODE_BYTES + lowest + upper * (level - 1), fewer, levels, level):
            return "has neighbours that do not exist"
    return ""


def _neighbours_exist(data: Bytes, places: NDArray[np.int64], most: int, levels: NDArray[np.int64], level: int) -> bool:
    """Return whether the lists of neighbours at these places name only nodes of this level, and no more than fit."""
    windows = _windows(data, 4 * (1 + most))
    for first in range(0, len(places), NODES_AT_A_TIME):
        lists = windows[places[first : first + NODES_AT_A_TIME]].view("<u4")
        counts, neighbours = lists[:, 0], lists[:, 1:]
        if counts.max() > most:
            return False
        named = neighbours[np.arange(most) < counts[:, None]]
        if len(named) and (int(named.max()) >= len(levels) or (level and levels[named].min() < level)):
            return False
    return True


def _windows(data: Bytes, size: int) -> Bytes:
    """Return (L - size + 1, size): the bytes from each place on."""
    return np.lib.stride_tricks.sliding_window_view(data, size)


def _numbers(data: Bytes, start: int, count: int, kind: str) -> list[int]:
    found: list[int] = np.frombuffer(data[start : start + count * np.dtype(kind).itemsize].tobytes(), kind).tolist()
    return found
