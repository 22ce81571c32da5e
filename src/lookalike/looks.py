"""What a picture looks like, in 64 bits: re-encoded, scaled or slightly changed copies differ in few of them.

Source of the hash: N. Krawetz, "Kind of like that", 2013, https://www.hackerfactor.com/blog/?/archives/529
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

NOISE = 1.0  # gray levels: a step that is not larger is none, so that flat parts give the same bits
ROWS, COLUMNS = 8, 9
CHUNK = 64  # images as floating numbers at a time


def difference_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Whether it gets lighter from each cell of an 8 × 9 grid to the next on its right.

    Args:
        images: (N, H, W, 3) uint8, RGB.

    Returns:
        (N,) uint64, the cell at the top left in the highest bit. 0: nothing gets lighter anywhere, as in a picture of
        one colour.
    """
    height, width = images.shape[1:3]
    down, across = means(height, ROWS), np.repeat(means(width, COLUMNS), 3, axis=1) / 3  # (8, H), (9, 3 W)
    hashes = np.empty(len(images), np.uint64)
    for start in range(0, len(images), CHUNK):
        lines = images[start : start + CHUNK].reshape(-1, 3 * width).astype(np.float32)
        cells = down @ (lines @ across.T).reshape(-1, height, COLUMNS)  # (n, 8, 9)
        bits = np.packbits((cells[:, :, 1:] - cells[:, :, :-1]) > NOISE, axis=2)  # (n, 8, 1) uint8
        hashes[start : start + CHUNK] = bits.reshape(-1, 8).view(">u8")[:, 0]
    return hashes


@cache
def means(pixels: int, cells: int) -> NDArray[np.float32]:
    """(cells, pixels) float32: each row averages its share of a line of pixels, those at the edges in part."""
    edges = np.linspace(0, pixels, cells + 1)
    places = np.arange(pixels)
    covered = np.clip(np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places), 0, None)
    return np.asarray(covered / covered.sum(1, keepdims=True), np.float32)
