"""One picture in any form as a model's input: upright, RGB, square."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import InputError
from lookalike.image import CropMode, decode, from_pillow, read_file

Picture: TypeAlias = Image.Image | str | Path | bytes | NDArray[np.uint8]


def prepare(picture: Picture, size: int, where: str = "image", *, crop_mode: CropMode = "center") -> NDArray[np.uint8]:
    """A picture as RGB of `size` x `size` pixels, by the rules of `lookalike.image.decode`.

    Args:
        picture: a Pillow image, the path or the bytes of an image file, or RGB (H, W, 3) uint8.
        size: side of the square in pixels.
        where: what to call the picture in an error, when it is no path.
        crop_mode: "center" to keep proportions, "squash" to keep the whole picture.

    Returns:
        RGB, (size, size, 3) uint8.

    Raises:
        InputError: a file that is missing or is not a whole image, or an array of another shape or type.
    """
    if isinstance(picture, str | Path):
        return decode(read_picture(picture), size, crop_mode=crop_mode, where=str(picture))
    if isinstance(picture, bytes):
        return decode(picture, size, crop_mode=crop_mode, where=where)
    if isinstance(picture, np.ndarray):
        return from_pillow(_from_array(picture, where), size, crop_mode=crop_mode, where=where)
    if isinstance(picture, Image.Image):
        return from_pillow(picture, size, crop_mode=crop_mode, where=where)
    raise InputError(
        f"{where}: a {type(picture).__name__} is not a picture.",
        "Give a Pillow image, a path, the bytes of a file, or an array.",
    )


def read_picture(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        InputError: it is missing, may not be read, or is larger than any image that is decoded.
    """
    try:
        return read_file(Path(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None


def _from_array(array: NDArray[np.uint8], where: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"{where}: an array of {array.dtype} {array.shape} is not a picture.", "Give uint8 of shape (H, W, 3), RGB."
        )
    return Image.fromarray(np.ascontiguousarray(array))
