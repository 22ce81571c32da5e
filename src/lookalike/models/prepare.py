"""One picture in any form as a model's input: upright, RGB, square; the same pixels as `data.image.decode`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lookalike.errors import InputError

Picture: TypeAlias = Image.Image | str | Path | bytes | NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 100_000_000


def prepare(picture: Picture, size: int, where: str = "image") -> NDArray[np.uint8]:
    """A picture as RGB of `size` x `size` pixels.

    EXIF orientation is applied, transparency becomes white; the shorter side is resized to `size` (bicubic,
    antialiased) and the middle is taken. A picture that has the size already is returned as it is.

    Args:
        picture: a Pillow image, the path or the bytes of an image file, or RGB (H, W, 3) uint8.
        size: side of the square in pixels.
        where: what to call the picture in an error, when it is no path.

    Returns:
        RGB, (size, size, 3) uint8.

    Raises:
        InputError: a file that is missing or is not a whole image, or an array of another shape or type.
    """
    if isinstance(picture, str | Path):
        where = str(picture)
        picture = _read(Path(picture))
    try:
        if isinstance(picture, bytes):
            image = _open(picture, size, where)
        elif isinstance(picture, np.ndarray):
            image = _from_array(picture, where)
        elif isinstance(picture, Image.Image):
            image = picture
        else:
            raise InputError(
                f"{where}: a {type(picture).__name__} is not a picture.",
                "Give a Pillow image, a path, the bytes of a file, or an array.",
            )
        return np.array(_cover(_rgb(ImageOps.exif_transpose(image), where), size))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise InputError(f"{where}: damaged image ({error}).", "Replace or remove it.") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None


def _open(data: bytes, size: int, where: str) -> Image.Image:
    """The picture in these bytes; a JPEG far larger than `size` is decoded at a fraction of its own."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        what = "empty" if not data else "not an image in a format that can be read"
        raise InputError(f"{where}: {what}.", "Use JPEG, PNG, WebP, BMP, GIF, TIFF or PPM.") from None
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{where}: {image.width} × {image.height} pixels are too many.",
            f"Make it smaller than {MAX_PIXELS // 1_000_000} million pixels.",
        )
    image.draft(None, (2 * size, 2 * size))
    return image


def _from_array(array: NDArray[np.uint8], where: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"{where}: an array of {array.dtype} {array.shape} is not a picture.", "Give uint8 of shape (H, W, 3), RGB."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
            raise InputError(f"{where}: pixels of more than 16 bits.", "Save it with 8 or 16 bits a channel.")
        gray = (values.astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _cover(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the picture just covers the square, in one resampling of the part that stays."""
    side = min(image.size)
    if image.size == (size, size):
        return image
    left, top = (image.width - side) / 2, (image.height - side) / 2
    if side == size:
        return image.crop((int(left), int(top), int(left) + size, int(top) + size))
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
