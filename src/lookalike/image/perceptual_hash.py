"""The perceptual hash of an image: 64 bits of which scaled, re-encoded or slightly changed copies differ in few."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

MIN_STEP = 1.0  # gray levels; smaller differences between cells count as none, so that flat areas give stable bits
ROWS, COLUMNS = 8, 9
CHUNK = 64  # images converted to float32 at a time


def dhash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Compute difference hashes.

    Each image is averaged into a grid of 8 x 9 gray cells. A bit is set where a cell is darker than its right
    neighbour (Krawetz, "Kind of like that", 2013).

    Args:
        images: (N, H, W, 3) uint8, RGB.

    Returns:
        (N,) uint64; the highest bit belongs to the top left cell. An image of one colour has the hash 0.
    """
    height, width = images.shape[1:3]
    down = cell_weights(height, ROWS)  # (8, H)
    across = np.repeat(cell_weights(width, COLUMNS), 3, axis=1) / 3  # (9, 3 W): the mean of the three channels
    hashes = np.empty(len(images), np.uint64)
    for start in range(0, len(images), CHUNK):
        lines = images[start : start + CHUNK].reshape(-1, 3 * width).astype(np.float32)
        cells = down @ (lines @ across.T).reshape(-1, height, COLUMNS)  # (n, 8, 9)
        bits = np.packbits((cells[:, :, 1:] - cells[:, :, :-1]) > MIN_STEP, axis=2)  # (n, 8, 1) uint8
        hashes[start : start + CHUNK] = bits.reshape(-1, 8).view(">u8")[:, 0]
    return hashes


@cache
def cell_weights(pixels: int, cells: int) -> NDArray[np.float32]:
    """Return the weights, (cells, pixels) float32, that average a line of pixels into cells of equal width."""
    edges = np.linspace(0, pixels, cells + 1)
    starts = np.arange(pixels)
    covered = np.clip(np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts), 0, None)
    return np.asarray(covered / covered.sum(1, keepdims=True), np.float32)
