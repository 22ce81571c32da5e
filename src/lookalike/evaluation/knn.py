"""Exact k-nearest-neighbour search by cosine, in bounded memory.

Cosines are computed one tile at a time. Each row keeps a running list of its k best neighbours. A cosine is merged into
the list only if it is at least the row's k-th best so far. To find such cosines quickly, each tile is divided into
groups, and a group is examined only if its maximum passes this test. When a set is searched against itself, each
off-diagonal tile updates the lists of both its rows and its columns, so each pair is multiplied once.

Equal cosines are sorted by ascending index. "Equal" means equal as computed in float32: the cosines of two copies of a
vector with a third vector may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lookalike.errors import InputError

TILE = 4096  # rows and columns of a tile: 64 MB of cosines
SLICE = 1024  # rows of a tile that are merged at a time
LISTS = 256 << 20  # maximum bytes for the lists of all rows; above it, the rows are searched in blocks
GROUP = 64  # maximum number of cosines in a group
ENTRIES = 4 << 20  # maximum number of neighbours per yielded block
NOTHING = torch.iinfo(torch.int64).min
LAST = (1 << 32) - 1
BELOW_ALL = -2.0  # lower than any cosine


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of a block of consecutive rows, nearest first.

    Args:
        first: index of the first row.
        indexes: (rows, k) int64, gallery indices; padded with -1 if a row has fewer than k neighbours.
        cosines: (rows, k) float32, padded with -inf.
    """

    first: int
    indexes: NDArray[np.int64]
    cosines: NDArray[np.float32]


def unit_vectors(embeddings: ArrayLike, what: str = "embeddings") -> NDArray[np.float32]:
    """Return a copy of the rows scaled to unit length, (N, D) float32.

    Args:
        embeddings: (N, D) numbers.
        what: name of the array in error messages.

    Raises:
        InputError: the array is empty or not 2-D, or a row is all zeros or not finite in float32.
    """
    with np.errstate(over="ignore"):
        vectors = np.asarray(embeddings).astype(np.float32, copy=False)
    if vectors.ndim != 2 or not vectors.size:
        raise InputError(f"{what} of shape {vectors.shape} cannot be compared.", "They must be (N, D), not empty.")
    peaks = np.maximum(vectors.max(1), -vectors.min(1))  # dividing by them first avoids overflow in the squares
    if not np.isfinite(peaks).all():
        row = int(np.flatnonzero(~np.isfinite(peaks))[0])
        raise InputError(f"{what}: row {row} is not all finite numbers.", "The weights are damaged: train again.")
    if not peaks.all():
        row = int(np.flatnonzero(peaks == 0)[0])
        raise InputError(f"{what}: row {row} is all zeros and has no direction.", "Leave it out, or train again.")
    units: NDArray[np.float32] = vectors / peaks[:, None]
    units /= np.sqrt(np.einsum("nd,nd->n", units, units))[:, None]
    return units


def nearest(
    embeddings: ArrayLike,
    k: int,
    *,
    gallery: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    gallery_groups: ArrayLike | None = None,
) -> Iterator[Neighbours]:
    """Find the k nearest neighbours of every row by cosine.

    Args:
        embeddings: (N, D) numbers, of any length.
        k: number of neighbours, at least 1.
        gallery: (M, D) numbers to search. By default, each row is searched among all other rows.
        groups: (N,) int; neighbours in the row's group are excluded, for example its near-duplicates.
        gallery_groups: (M,) int, required with both `groups` and `gallery`.

    Yields:
        `Neighbours` of consecutive blocks of rows, in order.

    Raises:
        InputError: see `unit_vectors`; or the dimensions differ, groups have the wrong length, or only one side has
            groups.
    """
    queries = torch.from_numpy(unit_vectors(embeddings))
    others = queries if gallery is None else torch.from_numpy(unit_vectors(gallery, "gallery"))
    if others.shape[1] != queries.shape[1]:
        raise InputError(
            f"the gallery has {others.shape[1]} dimensions and the embeddings have {queries.shape[1]}.",
            "Embed both with the same model.",
        )
    own, theirs = _group_ids(groups, gallery_groups, len(queries), len(others), gallery is not None)
    k = min(k, len(others))
    if gallery is None and len(queries) * k * 8 <= LISTS:
        yield from _among_themselves(queries, k, own)
    else:
        yield from _in_gallery(queries, others, k, own, theirs, itself=gallery is None)


def _group_ids(
    groups: ArrayLike | None, gallery_groups: ArrayLike | None, queries: int, others: int, apart: bool
) -> tuple[Tensor | None, Tensor | None]:
    if (gallery_groups is not None) != (groups is not None and apart):
        raise InputError("groups are given for one side only.", "Give groups, and gallery_groups with a gallery.")
    if groups is None:
        return None, None
    own = np.array(groups, np.int64)
    theirs = own if gallery_groups is None else np.array(gallery_groups, np.int64)
    if own.shape != (queries,) or theirs.shape != (others,):
        raise InputError(
            f"groups of shapes {own.shape} and {theirs.shape} do not fit {queries} queries and {others} others.",
            "Give one group id an image.",
        )
    return torch.from_numpy(own), torch.from_numpy(theirs)


def _among_themselves(vectors: Tensor, k: int, groups: Tensor | None) -> Iterator[Neighbours]:
    lists = _Lists(len(vectors), k)
    room = torch.empty(min(TILE, len(vectors)) ** 2)
    starts = range(0, len(vectors), TILE)
    for top in starts:
        rows = slice(top, top + TILE)
        for left in starts[top // TILE :]:
            columns = slice(left, left + TILE)
            cosines = _product(vectors[rows], vectors[columns], room)
            if groups is not None:
                cosines.masked_fill_(groups[rows, None] == groups[None, columns], -torch.inf)
            if left == top:
                cosines.fill_diagonal_(-torch.inf)
            lists.offer(cosines, top, left)
            if left > top:
                lists.offer(cosines.T, left, top)
        yield lists.read(rows)


def _in_gallery(
    queries: Tensor, gallery: Tensor, k: int, own: Tensor | None, theirs: Tensor | None, *, itself: bool
) -> Iterator[Neighbours]:
    height, width = max(1, min(TILE, ENTRIES // k)), max(TILE, k)
    room = torch.empty(min(height, len(queries)) * min(width, len(gallery)))
    for top in range(0, len(queries), height):
        some = queries[top : top + height]
        lists = _Lists(len(some), k)
        for left in range(0, len(gallery), width):
            cosines = _product(some, gallery[left : left + width], room)
            if own is not None and theirs is not None:
                same = own[top : top + height, None] == theirs[None, left : left + width]
                cosines.masked_fill_(same, -torch.inf)
            if itself:
                rows = torch.arange(top, top + len(some))
                rows = rows[(rows >= left) & (rows < left + cosines.shape[1])]
                cosines[rows - top, rows - left] = -torch.inf
            lists.offer(cosines, 0, left)
        yield lists.read(slice(0, len(some)), first=top)


def _product(some: Tensor, others: Tensor, room: Tensor) -> Tensor:
    """Compute all dot products, (rows, other rows), in the buffer `room`; allocating new memory is slow."""
    return torch.mm(some, others.T, out=room[: len(some) * len(others)].view(len(some), len(others)))


class _Lists:
    """The k best neighbours of each row so far, as int64 keys; a larger key is a larger cosine, then a lower index."""

    def __init__(self, rows: int, k: int) -> None:
        self.keys = torch.full((rows, k), NOTHING)

    def offer(self, cosines: Tensor, first: int, start: int) -> None:
        """Merge a tile of cosines: list rows from `first`, gallery rows from `start`. Entries of -inf are ignored."""
        for low in range(0, len(cosines), SLICE):
            part = cosines[low : low + SLICE]
            keys = self.keys[first + low : first + low + len(part)]
            k, columns = keys.shape[1], part.shape[1]
            size = 1 << max(1, min(GROUP, columns // (2 * k))).bit_length() - 1
            if columns % size:
                part = F.pad(part, (0, size - columns % size), value=-torch.inf)
            groups = part.shape[1] // size
            grouped = part.view(len(part), size, groups)
            maxima = _maxima(part, size)
            least = _cosines_of(keys.min(1).values).clamp(min=BELOW_ALL)
            if groups >= k and (keys == NOTHING).any():  # the k-th best is at least the k-th largest maximum
                least = torch.maximum(least, maxima.topk(k, 1).values[:, -1])
            row, group = (maxima >= least[:, None]).nonzero(as_tuple=True)
            members = grouped[row, :, group]  # (groups that pass, size)
            which, place = (members >= least[row, None]).nonzero(as_tuple=True)
            if len(which):
                new = _keys(members[which, place], place * groups + group[which] + start)
                _merge(keys, row[which], new)

    def read(self, rows: slice, first: int | None = None) -> Neighbours:
        """Return the sorted neighbours of some rows."""
        keys = self.keys[rows].sort(1, descending=True).values
        indexes = torch.where(keys == NOTHING, -1, LAST - (keys & LAST))
        return Neighbours(rows.start if first is None else first, indexes.numpy(), _cosines_of(keys).numpy())


def _maxima(cosines: Tensor, size: int) -> Tensor:
    """Compute the maximum of each group of `size` evenly spaced columns, (rows, columns / size).

    A transposed tile is reduced in its memory order, which is a hundred times faster.
    """
    if cosines.stride(0) == 1:
        return cosines.T.view(size, -1, len(cosines)).amax(0).T
    return cosines.view(len(cosines), size, -1).amax(1)


def _merge(keys: Tensor, row: Tensor, new: Tensor) -> None:
    """Merge new keys, sorted by their row, into the lists."""
    counts = row.bincount(minlength=len(keys))
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    table = torch.full((len(keys), int(counts.max())), NOTHING)
    table[row, place] = new
    keys.copy_(torch.cat([keys, table], 1).topk(keys.shape[1], 1, sorted=False).values)


def _keys(cosines: Tensor, indexes: Tensor) -> Tensor:
    """Pack cosines and indices into int64 keys.

    The high 32 bits are the float32 cosine as a sortable signed integer, the low 32 bits are `LAST - index`.
    """
    bits = (cosines + 0.0).view(torch.int32)  # -0 becomes 0
    sortable = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (sortable.long() << 32) | (LAST - indexes)


def _cosines_of(keys: Tensor) -> Tensor:
    sortable = (keys >> 32).int()
    cosines = (sortable ^ ((sortable >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return cosines.masked_fill(keys == NOTHING, -torch.inf)
