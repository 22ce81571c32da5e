"""Find near-duplicates: copies of an image that are re-encoded, scaled or slightly changed.

A query that finds its own copy does not measure the model. Two images are near-duplicates if their difference hashes
differ in at most `MAX_BITS` bits and their thumbnails by at most `MAX_LEVELS` gray levels on average. The thumbnails
separate images that only share a layout, such as plain shapes on white. Galleries store the same hash; see
`lookalike.image`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lookalike.errors import InputError
from lookalike.image import dhash
from lookalike.image.perceptual_hash import cell_weights

MAX_BITS = 5  # maximum Hamming distance of the 64-bit hashes
MAX_LEVELS = 8.0  # maximum mean absolute difference of the thumbnails, in 0..255
THUMBNAIL = 8  # side in pixels
CHUNK = 256  # images per batch of thumbnails
TILE = 4096  # rows and columns of a tile of hash comparisons


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of near-duplicate images.

    Args:
        pairs: (P, 2) int64, row indices in ascending order; within one set, the lower index comes first.
        exact: (P,) bool, whether the pixels are equal.
    """

    pairs: NDArray[np.int64]
    exact: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pairs)


def near_duplicates(
    images: NDArray[np.uint8],
    others: NDArray[np.uint8] | None = None,
    *,
    bits: int = MAX_BITS,
    levels: float = MAX_LEVELS,
) -> NearDuplicates:
    """Find the near-duplicate pairs within a set of images, or between two sets.

    Args:
        images: (N, size, size, 3) uint8, as in a pack.
        others: (M, size, size, 3) uint8 of the same size; by default, pairs within `images` are found.
        bits: maximum number of different bits of the 64-bit hashes.
        levels: maximum mean absolute difference of the thumbnails, in 0..255.

    Raises:
        InputError: an array is not a set of images, or the image sizes differ.
    """
    if others is not None and images.shape[1:] != others.shape[1:]:
        raise InputError(
            f"images of {images.shape[1:]} and {others.shape[1:]} cannot be compared.", "Pack both at one size."
        )
    hashes, thumbnails = _hashes_and_thumbnails(images)
    their_hashes, their_thumbnails = (hashes, thumbnails) if others is None else _hashes_and_thumbnails(others)
    theirs = images if others is None else others
    found: list[NDArray[np.int64]] = []
    exact: list[NDArray[np.bool_]] = []
    for rows, columns in _candidates(hashes, their_hashes, bits, within=others is None):
        for low in range(0, len(rows), TILE):
            a, b = rows[low : low + TILE], columns[low : low + TILE]
            alike = np.abs(thumbnails[a] - their_thumbnails[b]).mean(1) <= levels
            a, b = a[alike], b[alike]
            found.append(np.stack([a, b], 1))
            exact.append(np.array([np.array_equal(images[i], theirs[j]) for i, j in found[-1]], bool))
    if not found:
        return NearDuplicates(np.empty((0, 2), np.int64), np.empty(0, bool))
    pairs, same = np.concatenate(found), np.concatenate(exact)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return NearDuplicates(pairs[order], same[order])


def groups_of(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Assign each image to a connected group of pairs, (count,) int64; the id is the lowest row index of the group.

    For pairs between two sets of N and M images, add N to the second column and pass N + M as `count`.

    Args:
        pairs: (P, 2) int, row indices below `count`.
        count: total number of images.

    >>> groups_of(np.array([[0, 2], [2, 3]]), 5).tolist()
    [0, 1, 0, 0, 4]
    """
    one, other = np.asarray(pairs).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def _candidates(
    hashes: NDArray[np.float32], others: NDArray[np.float32], bits: int, *, within: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield rows and columns whose hashes, (N, 64) of -1 and 1, differ in at most `bits` bits."""
    ours, theirs = torch.from_numpy(hashes), torch.from_numpy(others)
    for top in range(0, len(ours), TILE):
        for left in range(top if within else 0, len(theirs), TILE):
            agreement = ours[top : top + TILE] @ theirs[left : left + TILE].T  # 64 - 2 × different bits, exact
            near = agreement >= ours.shape[1] - 2 * bits
            if within and left == top:
                near = near.triu(1)
            rows, columns = near.nonzero(as_tuple=True)
            yield rows.numpy() + top, columns.numpy() + left


def _hashes_and_thumbnails(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute hashes, (N, 64) of -1 and 1, and thumbnails, (N, 192) in 0..255; both float32."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not images.size:
        raise InputError(
            f"an array of {images.shape} {images.dtype} is not a set of images.", "Give (N, H, W, 3) uint8."
        )
    bits = np.unpackbits(dhash(images).view(np.uint8).reshape(-1, 8), axis=1)
    thumbnails = np.empty((len(images), THUMBNAIL * THUMBNAIL * 3), np.float32)
    down, across = cell_weights(images.shape[1], THUMBNAIL), cell_weights(images.shape[2], THUMBNAIL)
    for start in range(0, len(images), CHUNK):
        some = images[start : start + CHUNK].astype(np.float32).transpose(0, 3, 1, 2)  # (n, 3, H, W)
        thumbnails[start : start + CHUNK] = (down @ some @ across.T).reshape(len(some), -1)
    return bits.astype(np.float32) * 2 - 1, thumbnails
