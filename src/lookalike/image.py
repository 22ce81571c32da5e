"""One image from its encoded bytes: upright, RGB, 8 bits, and of the size that was asked for.

Training, measuring and predicting all decode here, so that a picture has the same pixels everywhere.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lookalike.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
CropMode = Literal["center", "squash"]  # how a picture becomes a square: cut evenly, or stretched

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO, the double pictures of phones
MAX_PIXELS = 100_000_000  # a picture of 300 MB once decoded: more is a mistake or an attack

ORIENTATION = 0x0112  # the EXIF tag; how each of its values is undone
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.init()  # every plugin now: `open` looks formats up by name, and threads must not load them all at once
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is our own, stricter check
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd tags and EXIF: a picture is whole, or it is refused


def decode(
    data: bytes,
    size: int | tuple[int, int] | None = None,
    *,
    box: tuple[int, int, int, int] | None = None,
    crop_mode: CropMode = "center",
    where: str = "image",
) -> NDArray[np.uint8]:
    """Decode an image.

    EXIF orientation is applied; gray, palette, CMYK and 16-bit images become 8-bit RGB; transparency becomes white; of
    an animation the first picture is taken. Resizing is antialiased (bicubic). By default it keeps proportions: the
    picture covers the target and what sticks out is cut off evenly; squashing keeps all of the picture instead. A
    picture that has the size already is returned as it is.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file.
        size: side of a square in pixels, or (height, width); None keeps the picture's own size.
        box: left, top, right, bottom in pixels of the upright picture: only this part is used. What reaches over the
            edge is left out.
        crop_mode: "center" to keep proportions, "squash" to keep the whole picture.
        where: what to call the image in an error: its path, as a rule.

    Returns:
        RGB, (height, width, 3) uint8.

    Raises:
        InputError: not an image in one of these formats, damaged or cut short, larger than `MAX_PIXELS`, with
            pixels that have no 8-bit meaning (floating point), or a box that holds nothing of the picture.
    """
    target = (size, size) if isinstance(size, int) else size
    image = read(data, None if target is None or box is not None else max(target), where=where)
    if box is not None:
        image = _crop(image, box, where)
    if target is not None:
        image = resized(image, *target, crop_mode)
    return np.array(image)


def read(data: bytes, size: int | None = None, *, where: str = "image") -> Image.Image:
    """The whole picture, loaded, upright and RGB: what `decode` cuts from.

    Args:
        data: as for `decode`.
        size: pixels that its shorter side is wanted at, later; a large JPEG is then decoded smaller, to twice that at
            least. None: as it is.
        where: what to call the image in an error.

    Raises:
        InputError: as `decode`.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        what = "empty" if not data else "not an image in a format that can be read"
        raise InputError(f"{where}: {what}.", "Use JPEG, PNG, WebP, BMP, GIF, TIFF or PPM, or remove it.") from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise _damaged(where, error) from None
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{where}: {image.width} × {image.height} pixels are too many.",
            f"Make it smaller than {MAX_PIXELS // 1_000_000} million pixels.",
        )
    if size is not None:
        image.draft(None, (2 * size, 2 * size))  # twice: resizing then does the fine filtering
    return _upright(image, where)


def from_pillow(
    image: Image.Image, size: int, *, crop_mode: CropMode = "center", where: str = "image"
) -> NDArray[np.uint8]:
    """A Pillow image as `decode` gives its file: upright, RGB, a square.

    Args:
        image: in any mode; it is not changed.
        size: side of the square in pixels.
        crop_mode: "center" to keep proportions, "squash" to keep the whole picture.
        where: what to call the image in an error.

    Returns:
        RGB, (size, size, 3) uint8.

    Raises:
        InputError: its file is damaged, or its pixels have no 8-bit meaning.
    """
    return np.array(resized(_upright(image, where), size, size, crop_mode))


def _upright(image: Image.Image, where: str) -> Image.Image:
    """The whole picture, loaded, upright and RGB; of a JPEG in draft mode, the smaller picture."""
    try:
        image.load()
        turn = UPRIGHT.get(_orientation(image))  # after loading, which turns TIFFs by itself
        image = _rgb(image, where)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(where, error) from None
    return image.transpose(turn) if turn is not None else image


def _damaged(where: str, error: Exception) -> InputError:
    return InputError(f"{where}: damaged image ({error}).", "Replace or remove it.")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 when there is none or the EXIF block cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the picture, which may well be whole
        return 1


def _rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _from_deep_gray(np.asarray(image), where)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_deep_gray(values: NDArray[np.generic], where: str) -> Image.Image:
    """8-bit RGB from gray values of 0 to 65535, (H, W)."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise InputError(f"{where}: pixels of more than 16 bits.", "Save it with 8 or 16 bits a channel.")
    gray = (values.astype(np.uint32) * 255 + 32767) // 65535
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def _crop(image: Image.Image, box: tuple[int, int, int, int], where: str) -> Image.Image:
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        raise InputError(
            f"{where}: the box {tuple(box)} holds nothing of the {image.width} × {image.height} picture.",
            "A box is left, top, right, bottom in pixels.",
        )
    return image.crop((left, top, right, bottom))


def resized(image: Image.Image, height: int, width: int, crop_mode: CropMode = "center") -> Image.Image:
    """An upright RGB picture at another size, as `decode` gives it; of one that has the size already, itself."""
    if image.size == (width, height):
        return image
    if crop_mode == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    return _cover(image, height, width)


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize so that the picture just covers height × width, cut evenly: one resampling of the part that stays."""
    scale = max(height / image.height, width / image.width)
    if scale == 1:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    part_width, part_height = min(width / scale, image.width), min(height / scale, image.height)
    left_edge, top_edge = (image.width - part_width) / 2, (image.height - part_height) / 2
    part = (left_edge, top_edge, left_edge + part_width, top_edge + part_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=part)
