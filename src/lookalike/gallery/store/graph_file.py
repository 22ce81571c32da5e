"""The file of a saved graph, looked at before usearch reads it, which follows what a file says without a check: a
neighbour that is not there ends the process.

The layout of usearch 2 (`index_dense.hpp`, `index.hpp`), numbers little-endian:

    rows, columns   2 × u32; then rows × columns int8, the vectors
    head            64 bytes: "usearch", version 3 × u16, kinds 4 × u8, u64 present, deleted, dimensions; the rest zeros
    graph           5 × u64: nodes, neighbours of a node, neighbours on the lowest level, highest level, entry
    levels          i16 of each node
    nodes           of each: u64 key, i16 level; for each of its levels u32 count and that many places of u32
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

MAGIC = b"usearch"
MAJOR = 2
KINDS = (99, 23, 14, 15)  # cosine, int8, keys of 64 bits, places of 32
HEAD, GRAPH, NODE = 64, 40, 10  # bytes
MOST_LEVELS = 64
CHUNK = 8192  # nodes looked at a time


def fault_of_graph(data: Bytes, dim: int, count: int, connectivity: int) -> str:
    """What is wrong with a saved graph of vectors at the positions 0 to `count` - 1; empty where usearch may read it.

    Args:
        data: (L,) uint8, the file.
        dim: numbers of a vector.
        count: vectors in it.
        connectivity: neighbours of a node, twice as many on the lowest level.
    """
    start = 8 + count * dim
    if len(data) < start + HEAD + GRAPH + 2 * count or _numbers(data, 0, 2, "<u4") != [count, dim]:
        return f"is not a graph of {count:,} vectors of {dim} numbers"
    head = data[start : start + HEAD].tobytes()
    if head[:7] != MAGIC or head[7:9] != MAJOR.to_bytes(2, "little") or tuple(head[13:17]) != KINDS:
        return f"is not a graph that usearch {MAJOR} wrote with the settings of a gallery"
    if _numbers(data, start + 17, 3, "<u8") != [count, 0, dim] or any(head[41:]):
        return f"is not a graph of {count:,} vectors"
    start += HEAD
    nodes, fewer, more, highest, entry = _numbers(data, start, 5, "<u8")
    if (nodes, fewer, more) != (count, connectivity, 2 * connectivity) or highest > MOST_LEVELS or entry >= count:
        return "has a head that does not fit"
    start += GRAPH
    levels = np.frombuffer(data[start : start + 2 * count], "<i2").astype(np.int64)
    if levels.min() < 0 or levels.max() > MOST_LEVELS or levels[entry] < highest:
        return "has levels that do not fit"
    start += 2 * count
    lowest, upper = 4 * (1 + more), 4 * (1 + fewer)  # bytes of the neighbours on a level
    sizes = NODE + lowest + upper * levels
    places = start + np.cumsum(sizes) - sizes
    if int(places[-1] + sizes[-1]) != len(data):
        return "has not the length of its nodes"
    heads = _windows(data, NODE)[places]
    keys = heads[:, :8].copy().view("<u8").reshape(-1)
    if not (heads[:, 8:].copy().view("<i2").reshape(-1) == levels).all():
        return "has levels that do not fit"
    if int(keys.max()) >= count or (np.bincount(keys.astype(np.int64), minlength=count) != 1).any():
        return "does not have each position once"
    if not _neighbours_are_there(data, places + NODE, more, levels, 0):
        return "has neighbours that are not there"
    for level in range(1, int(levels.max()) + 1):
        here = np.flatnonzero(levels >= level)
        if not _neighbours_are_there(data, places[here] + NODE + lowest + upper * (level - 1), fewer, levels, level):
            return "has neighbours that are not there"
    return ""


def _neighbours_are_there(
    data: Bytes, places: NDArray[np.int64], most: int, levels: NDArray[np.int64], level: int
) -> bool:
    """Whether lists of neighbours, at these places, name only nodes that have this level, and no more than fit."""
    windows = _windows(data, 4 * (1 + most))
    for first in range(0, len(places), CHUNK):
        lists = windows[places[first : first + CHUNK]].view("<u4")
        counts, neighbours = lists[:, 0], lists[:, 1:]
        if counts.max() > most:
            return False
        named = neighbours[np.arange(most) < counts[:, None]]
        if len(named) and (int(named.max()) >= len(levels) or (level and levels[named].min() < level)):
            return False
    return True


def _windows(data: Bytes, size: int) -> Bytes:
    """(L - size + 1, size): the bytes from each place on."""
    return np.lib.stride_tricks.sliding_window_view(data, size)


def _numbers(data: Bytes, start: int, count: int, kind: str) -> list[int]:
    found: list[int] = np.frombuffer(data[start : start + count * np.dtype(kind).itemsize].tobytes(), kind).tolist()
    return found
