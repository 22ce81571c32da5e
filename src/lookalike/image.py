"""One image from its encoded bytes: upright, RGB, 8 bits, and of the size that was asked for.

Training, measuring and predicting all decode here, so that a picture has the same pixels everywhere.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from lookalike.color_profiles import to_srgb
from lookalike.deep_pixels import as_eight_bits, has_deep_colour, is_deep
from lookalike.errors import InputError
from lookalike.image_limits import check_limits

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


CropMode = Literal["center", "squash"]  # how a picture becomes a square: cut evenly, or stretched


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO, the double pictures of phones


MAX_PIXELS = 150_000_000  # the largest photos of phones have 108; more is a mistake or an attack


MAX_BYTES = 2**29  # of one file; an image of `MAX_PIXELS` is smaller, however badly it is packed


LARGE = 25_000_000  # pixels: of larger images one at a time is decoded, as it may take 15 bytes for each


DRAFT = 3  # a large JPEG is decoded at this many times the size that is wanted, at least; resizing does the rest


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


_one_large = threading.Lock()


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

    EXIF orientation is applied; gray, palette and CMYK images become RGB, and colours with an embedded ICC profile
    become sRGB; deeper pixels become 8-bit ones (`lookalike.deep_pixels` says how white is found); transparency becomes
    white; of an animation the first picture is taken. Resizing is antialiased (bicubic). By default it keeps
    proportions: the picture covers the target and what sticks out is cut off evenly; squashing keeps all of the picture
    instead. A picture that has the size already is returned as it is.

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
        InputError: not an image in one of these formats, damaged or cut short, larger than `MAX_PIXELS`, of a structure
            that would keep the decoder busy (see `lookalike.image_limits`), or a box that holds nothing of the picture.
    """
    target = (size, size) if isinstance(size, int) else size
    image = load_image(data, None if target is None or box is not None else max(target), where=where)
    if box is not None:
        image = _crop(image, box, where)
    if target is not None:
        image = resized(image, *target, crop_mode)
    return np.array(image)


def read_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it cannot be read.
        InputError: it is larger than any image that is decoded; it is not read then.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES // 2**20} MiB are too many for a picture.", "Remove it.")
    return data


def load_image(data: bytes, size: int | None = None, *, where: str = "image") -> Image.Image:
    """The whole picture, loaded, upright and RGB: what `decode` cuts from.

    Args:
        data: as for `decode`.
        size: pixels that its shorter side is wanted at, later; a large JPEG is then decoded smaller, to three times
            that at least. None: as it is.
        where: what to call the image in an error.

    Raises:
        InputError: as `decode`.
    """
    check_limits(data, where)
    image = opened(data, where)
    with _alone(image, size):
        return _upright(image, data, where)


class TooManyPixelsError(InputError):
    """An image with more pixels than are decoded."""

    def __init__(self, where: str, pixels: str, most: int) -> None:
        super().__init__(f"{where}: {pixels} are too many.", f"Make it smaller than {most / 1e6:,.0f} million pixels.")


class UnknownFormatError(InputError):
    """Bytes that are no image, or one of a format that is not read."""


def opened(data: bytes, where: str = "image", max_pixels: int | None = None) -> ImageFile.ImageFile:
    """An image whose header has been read, and nothing else; its structure must have been checked.

    Args:
        data: as for `decode`.
        where: what to call the image in an error.
        max_pixels: that it may have; None: `MAX_PIXELS`.

    Raises:
        TooManyPixelsError: it has more.
        UnknownFormatError: not an image in one of our formats.
        InputError: damaged.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        what = "empty" if not data else "not an image in a format that can be read"
        remedy = "Use JPEG, PNG, WebP, BMP, GIF, TIFF or PPM, or remove it."
        raise UnknownFormatError(f"{where}: {what}.", remedy) from None
    except Image.DecompressionBombError:
        raise TooManyPixelsError(where, "its pixels", most) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise _damaged(where, error) from None
    if image.width * image.height > most:
        raise TooManyPixelsError(where, f"{image.width} × {image.height} pixels", most)
    return image


def from_pillow(
    image: Image.Image, size: int, *, crop_mode: CropMode = "center", where: str = "image"
) -> NDArray[np.uint8]:
    """A Pillow image as `decode` gives its file: upright, RGB, a square.

    Of an image that has been opened and not yet loaded, the file is decoded, so that the pixels are the same.

    Args:
        image: in any mode; it is not changed.
        size: side of the square in pixels.
        crop_mode: "center" to keep proportions, "squash" to keep the whole picture.
        where: what to call the image in an error.

    Returns:
        RGB, (size, size, 3) uint8.

    Raises:
        InputError: its file is damaged, or larger than `decode` allows.
    """
    if (data := _bytes_of(image, where)) is not None:
        return decode(data, size, crop_mode=crop_mode, where=where)
    if image.width * image.height > MAX_PIXELS:
        raise TooManyPixelsError(where, f"{image.width} × {image.height} pixels", MAX_PIXELS)
    return np.array(resized(_upright(image, None, where), size, size, crop_mode))


def _bytes_of(image: Image.Image, where: str) -> bytes | None:
    """The file of an image that has been opened and is as it was then; None where there is none, or another format."""
    if not isinstance(image, ImageFile.ImageFile) or image.format not in {*FORMATS, "MPO"} or image.tell():
        return None
    if image.tile and image.fp is not None:
        place = image.fp.tell()
        image.fp.seek(0)
        data: bytes = image.fp.read(MAX_BYTES + 1)
        image.fp.seek(place)
    elif image.format == "TIFF" and image.readonly and image.filename:  # mapped, and by Pillow not set upright
        data = read_file(Path(os.fsdecode(image.filename)))
    else:
        return None
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: more than {MAX_BYTES // 2**20} MiB are too many for a picture.", "Remove it.")
    return data


def _alone(image: ImageFile.ImageFile, size: int | None) -> AbstractContextManager[object]:
    """Make a JPEG ready to be decoded to the size that is needed; of large images, wait for one's turn."""
    whole = image.width * image.height
    if size is not None:
        image.draft(None, (DRAFT * size, DRAFT * size))
    pixels = whole if image.info.get("progressive") else image.width * image.height
    return _one_large if pixels > LARGE else nullcontext()


def _upright(image: Image.Image, data: bytes | None, where: str) -> Image.Image:
    """The whole picture, loaded, upright and RGB; of a JPEG in draft mode, the smaller picture."""
    try:
        deep = has_deep_colour(image)
        image.load()
        turn = UPRIGHT.get(_orientation(image))  # after loading, which turns TIFFs by itself
        image = _rgb(image, data if deep else None)
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


def _rgb(image: Image.Image, deep: bytes | None) -> Image.Image:
    """8-bit RGB in sRGB, on white. `deep`: the file, of an image whose colours have 16 bits there."""
    if is_deep(image) or deep is not None:
        image = as_eight_bits(image, deep)
    if image.info.get("icc_profile") or image.mode == "LAB":
        image = to_srgb(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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


# What a picture looks like, in 64 bits: re-encoded, scaled or slightly changed copies differ in few of them.

NOISE = 1.0  # gray levels: a step that is not larger is none, so that flat parts give the same bits


ROWS, COLUMNS = 8, 9


CHUNK = 64  # images as floating numbers at a time


def dhash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
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


# One picture in any form as a model's input: upright, RGB, square.

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
