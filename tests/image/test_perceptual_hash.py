"""The difference hash in 64 bits, against a slow one."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
from PIL import Image

from lookalike.image import dhash
from lookalike.image.perceptual_hash import MIN_STEP


def drawn(count: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    resized = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in small]
    return np.stack([np.asarray(one) for one in resized])


def slow_hash(image: np.ndarray) -> int:
    """Means of cells whose borders lie on whole pixels, one after the other."""
    height, width = image.shape[0] // 8, image.shape[1] // 9
    bits = 0
    for row in range(8):
        cells = [
            image[row * height : (row + 1) * height, column * width : (column + 1) * width].mean()
            for column in range(9)
        ]
        for left, right in pairwise(cells):
            bits = 2 * bits + int(right - left > MIN_STEP)
    return bits


def test_the_hash_is_that_of_the_obvious_way() -> None:
    images = drawn(70, 40, 36)
    hashes = dhash(images)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [slow_hash(image) for image in images]


def test_a_copy_saved_again_and_smaller_is_near_and_another_picture_is_not() -> None:
    images = drawn(40, 64, 64)
    again = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).resize((48, 48)).save(file, "JPEG", quality=60)
        again.append(np.asarray(Image.open(file).resize((64, 64))))
    near = np.bitwise_count(dhash(images) ^ dhash(np.stack(again)))
    far = np.bitwise_count(dhash(images) ^ dhash(images[::-1]))
    assert near.max() <= 5 < far.min()


def test_a_picture_of_one_colour_has_the_hash_nought() -> None:
    assert dhash(np.full((2, 9, 9, 3), 200, np.uint8)).tolist() == [0, 0]
    assert dhash(np.empty((0, 8, 8, 3), np.uint8)).tolist() == []
