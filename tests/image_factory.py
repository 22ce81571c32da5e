"""Small images for tests: pixels by a seed, and their files in memory."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.data.synthetic import CLASS_NAMES, render

ORIENTATION = 0x0112  # EXIF tag


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random RGB pixels, (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drawn(seed: int, size: int = 16, class_name: str = "") -> NDArray[np.uint8]:
    """A built-in image, (size, size, 3) uint8; by default of a class that depends on the seed."""
    return render(class_name or CLASS_NAMES[seed % len(CLASS_NAMES)], np.random.default_rng(seed), size)


def encoded(
    image: Image.Image | NDArray[np.uint8], kind: str = "PNG", *, orientation: int | None = None, **options: Any
) -> bytes:
    """An image file; `options` as for `PIL.Image.Image.save`."""
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()
