"""Encode pixels for HTML."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def jpeg_data_uri(pixels: NDArray[np.uint8], max_side: int = 192, quality: int = 88) -> str:
    """Return an image (H, W, 3) uint8 as a JPEG in a data URI, reduced if a side is longer than `max_side` pixels."""
    image = Image.fromarray(np.asarray(pixels))
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
