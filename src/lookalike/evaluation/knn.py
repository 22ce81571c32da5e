"""The nearest neighbours of every vector: exact, by cosine, in bounded memory.

Cosines are computed a tile at a time. Of each tile only those pass that are not below the k-th best that the row has
so far, and of most groups of them the largest is looked at, and no other; they join the row's running list, which is
cut back to k. Where a set is searched with itself, a tile serves its rows and its columns, so that every pair is
multiplied once.

Equal cosines are ordered by index, the lower first. "Equal" means equal in float32 as computed: two copies of one
vector may differ from each other in the last bit of their cosine with a third.
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
SLICE = 1024  # rows of a tile whose lists are brought up to date at a time
LISTS = 256 << 20  # bytes that the running lists of all rows may take; longer ones are made for a few rows at a time
GROUP = 64  # cosines of which the largest is looked at first, at most
ENTRIES = 4 << 20  # neighbours handed out at a time
NOTHING = torch.iinfo(torch.int64).min
LAST = (1 << 32) - 1
BELOW_ALL = -2.0  # lower than any cosine


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of some rows in a row, nearest first.

    Args:
        first: the first of these rows.
        indexes: (rows, k) int64, into the gallery; -1 after the last one where there are fewer than k.
        cosines: (rows, k) float32; -inf there.
    """

    first: int
    indexes: NDArray[np.int64]
    cosines: NDArray[np.float32]


def unit_vectors(embeddings: ArrayLike, what: str = "embeddings") -> NDArray[np.float32]:
    """Rows scaled to length 1, (N, D) float32, a copy.

    Args:
        embeddings: (N, D) numbers.
        what: what to call them in an error.

    Raises:
        InputError: another shape, no rows, a row that is not finite in float32, or one of length zero.
    """
    with np.errstate(over="ignore"):
        vectors = np.asarray(embeddings).astype(np.float32, copy=False)
    if vectors.ndim != 2 or not vectors.size:
        raise InputError(f"{what} of shape {vectors.shape} cannot be compared.", "They must be (N, D), not empty.")
    peaks = np.maximum(vectors.max(1), -vectors.min(1))  # squares of what is divided by them cannot overflow
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
    """The k nearest neighbours of every row, by cosine; some rows at a time, all in order.

    Without a gallery each row is searched among the others, itself left out.

    Args:
        embeddings: (N, D) numbers; they need not be of unit length.
        k: how many, at least 1.
        gallery: (M, D) numbers to search in, by default the embeddings.
        groups: (N,) int; a row's neighbours of its own group are left out (its near-duplicates, say).
        gallery_groups: (M,) int, given with `groups` where there is a gallery.

    Yields:
        `Neighbours` of consecutive rows.

    Raises:
        InputError: as `unit_vectors`; a gallery of another dimension; groups of another length, or for one side only.
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
    """All dot products, (rows, rows of the others), in memory that is used again: fresh pages take long."""
    return torch.mm(some, others.T, out=room[: len(some) * len(others)].view(len(some), len(others)))


class _Lists:
    """The best k of each row so far, as int64 keys that sort by cosine, then by index, the better the larger."""

    def __init__(self, rows: int, k: int) -> None:
        self.keys = torch.full((rows, k), NOTHING)

    def offer(self, cosines: Tensor, first: int, start: int) -> None:
        """Take in cosines of our rows from `first` on with the gallery from `start` on; none at -inf is taken."""
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
            if groups >= k and (keys == NOTHING).any():  # the k-th best is no less than the k-th maximum
                least = torch.maximum(least, maxima.topk(k, 1).values[:, -1])
            row, group = (maxima >= least[:, None]).nonzero(as_tuple=True)
            members = grouped[row, :, group]  # (groups that pass, size)
            which, place = (members >= least[row, None]).nonzero(as_tuple=True)
            if len(which):
                new = _keys(members[which, place], place * groups + group[which] + start)
                _merge(keys, row[which], new)

    def read(self, rows: slice, first: int | None = None) -> Neighbours:
        """The lists of some rows, sorted."""
        keys = self.keys[rows].sort(1, descending=True).values
        indexes = torch.where(keys == NOTHING, -1, LAST - (keys & LAST))
        return Neighbours(rows.start if first is None else first, indexes.numpy(), _cosines_of(keys).numpy())


def _maxima(cosines: Tensor, size: int) -> Tensor:
    """The largest of each group of so many, evenly spread over a row: (rows, columns / size). A tile on its side is
    reduced as it lies in memory, which is a hundred times faster.
    """
    if cosines.stride(0) == 1:
        return cosines.T.view(size, -1, len(cosines)).amax(0).T
    return cosines.view(len(cosines), size, -1).amax(1)


def _merge(keys: Tensor, row: Tensor, new: Tensor) -> None:
    """Let new keys, ordered by the row that they belong to, into the rows' lists."""
    counts = row.bincount(minlength=len(keys))
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    table = torch.full((len(keys), int(counts.max())), NOTHING)
    table[row, place] = new
    keys.copy_(torch.cat([keys, table], 1).topk(keys.shape[1], 1, sorted=False).values)


def _keys(cosines: Tensor, indexes: Tensor) -> Tensor:
    """The bits of a float32, made to sort as a signed integer, above those of the index counted backwards."""
    bits = (cosines + 0.0).view(torch.int32)  # -0 becomes 0
    sortable = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (sortable.long() << 32) | (LAST - indexes)


def _cosines_of(keys: Tensor) -> Tensor:
    sortable = (keys >> 32).int()
    cosines = (sortable ^ ((sortable >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return cosines.masked_fill(keys == NOTHING, -torch.inf)
