"""Decode an image: upright, 8-bit RGB in sRGB, at the size that is asked for.

Reads top to bottom: `decode`, the four kinds of input, opening a file, turning its pixels into upright RGB, resizing.
"""

from __future__ import annotations

import io
import math
import os
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from lookalike.errors import InputError
from lookalike.image.color_profiles import to_srgb
from lookalike.image.deep_pixels import has_deep_colour, is_deep, to_eight_bits
from lookalike.image.limits import check_limits

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO, the double images of phones

MAX_PIXELS = 150_000_000  # photos of phones have up to 108 million; more is a mistake or an attack
MAX_BYTES = 2**29  # of a file; an image of MAX_PIXELS is smaller, however badly it is compressed
LARGE_IMAGE_PIXELS = 25_000_000  # larger images are decoded one at a time, since each may take 15 bytes a pixel
MAX_RESIZED_PIXELS = 16_000_000  # of a whole resized image; of a larger one only the part that is kept is computed
DRAFT_SCALE = 3  # a large JPEG is decoded to at least this many times the wanted size, then resized

ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {  # what undoes each value of the tag
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Interpolation = Literal["bicubic", "bilinear", "lanczos", "hamming", "box", "nearest"]
MIN_CROP_SHARE = 0.25


@dataclass(frozen=True)
class ResizeCrop:
    """Resize an image, then cut the center out, in whole pixels: what torchvision and timm do.

    Args:
        share: side of the square that is cut out, as a share of the side that is resized (timm: `crop_pct`).
        interpolation: of the resizing, antialiased; names as in Pillow.
        squash: resize both sides to one length; False: the shorter side, keeping proportions.

    Raises:
        ValueError: a share that is not from `MIN_CROP_SHARE` to 1, or an unknown interpolation.
    """

    share: float = 1.0
    interpolation: Interpolation = "bicubic"
    squash: bool = False

    def __post_init__(self) -> None:
        if not MIN_CROP_SHARE <= self.share <= 1:
            raise ValueError(f"a crop share must be from {MIN_CROP_SHARE} to 1, not {self.share}")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"no interpolation '{self.interpolation}': it is {', '.join(get_args(Interpolation))}")

    def __str__(self) -> str:
        return f"{self.share:g} of the {'stretched image' if self.squash else 'shorter side'}, {self.interpolation}"

    def resized(self, side: int) -> int:
        """The length that a side is resized to, for a square of `side` pixels."""
        return math.floor(side / self.share)


# How an image becomes a square: cut at the sides and resized; stretched; or see `ResizeCrop`.
CropMode = Literal["center", "squash"] | ResizeCrop
ImageLike: TypeAlias = Image.Image | str | Path | bytes | NDArray[np.uint8]

_one_large_image = threading.Lock()
Image.init()  # load all plugins now: formats are looked up by name, and threads must not load plugins at the same time


def decode(
    image: ImageLike,
    size: int | tuple[int, int] | None = None,
    *,
    box: tuple[int, int, int, int] | None = None,
    crop_mode: CropMode = "center",
    name: str = "image",
) -> NDArray[np.uint8]:
    """Decode an image to RGB pixels.

    EXIF orientation is applied. Gray, palette and CMYK images become RGB, colours with an embedded ICC profile become
    sRGB, deeper pixels become 8-bit ones (see `lookalike.image.deep_pixels`), and transparency becomes white. Of an
    animation, the first frame is decoded. Resizing is antialiased (bicubic). An image that already has the size is not
    resampled.

    Args:
        image: the path or the bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file, a Pillow image, or an RGB array
            (H, W, 3) uint8. Of a Pillow image that was opened and not yet loaded, the file is decoded, so that the
            pixels are the same as those of its path.
        size: side of a square in pixels, or (height, width); None keeps the image's own size.
        box: decode only this part: left, top, right, bottom in pixels of the upright image, clipped to the image.
        crop_mode: "center" keeps proportions and cuts off what does not fit; "squash" stretches the whole image; or a
            `ResizeCrop`.
        name: what errors call an image that is not a path.

    Returns:
        RGB, (height, width, 3) uint8.

    Raises:
        InputError: a missing file, an unknown format, a damaged image, more than `MAX_PIXELS` pixels, a structure that
            would keep the decoder busy (see `lookalike.image.limits`), an array of another shape or type, or a box
            outside of the image.
    """
    target = (size, size) if isinstance(size, int) else size
    if isinstance(image, str | Path):
        name = str(image)
    data = _file_content(image, name)
    if data is not None:
        resized_to = None if target is None or box is not None else resized_side(max(target), crop_mode)
        rgb = load_image(data, resized_to, name=name)
    else:
        pixels = _from_array(image, name) if isinstance(image, np.ndarray) else image
        assert isinstance(pixels, Image.Image)
        if pixels.width * pixels.height > MAX_PIXELS:
            raise TooManyPixelsError(name, f"{pixels.width} × {pixels.height} pixels", MAX_PIXELS)
        rgb = _to_upright_rgb(pixels, None, name)
    if box is not None:
        rgb = _crop(rgb, box, name)
    if target is not None:
        rgb = resize(rgb, *target, crop_mode)
    return np.array(rgb)


def decode_part(
    image: ImageLike,
    box: tuple[int, int, int, int],
    size: int,
    *,
    crop_mode: CropMode = "center",
    name: str = "image",
) -> NDArray[np.uint8]:
    """Decode a part of an image as `decode` does, but refuse a box that is not inside of the image.

    Args:
        image: as for `decode`.
        box: left, top, right, bottom in pixels of the upright image.
        size: side of a square in pixels.
        crop_mode: how the part becomes a square.
        name: what errors call an image that is not a path.

    Returns:
        RGB, (size, size, 3) uint8.

    Raises:
        InputError: as `decode`; or the box is empty or reaches beyond the image, whose size is in the message.
    """
    pixels = decode(image, name=name)
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        shown = str(image) if isinstance(image, str | Path) else name
        raise InputError(
            f"{shown}: box {','.join(map(str, box))} is not inside of the image, which has {width} × {height} pixels.",
            "A box is left, top, right, bottom in pixels of the upright image.",
        )
    return decode(pixels[top:bottom, left:right], size, crop_mode=crop_mode, name=name)


def load_image(data: bytes, size: int | None = None, *, name: str = "image") -> Image.Image:
    """Decode a whole image as `decode` does, without resizing.

    Args:
        data: the bytes of an image file.
        size: the size in pixels that it will be resized to; a large JPEG is then decoded to a reduced size, at least
            three times this one.
        name: what errors call the image.

    Returns:
        An upright RGB image.

    Raises:
        InputError: as `decode`.
    """
    check_limits(data, name)
    image = open_image(data, name)
    with _memory_turn(image, size):
        return _to_upright_rgb(image, data, name)


# The kinds of input.


def _file_content(image: ImageLike, name: str) -> bytes | None:
    """Return the bytes of an image's file; None for pixels in memory."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return read_image_file(image)
    if isinstance(image, Image.Image):
        return _unloaded_file(image, name)
    if isinstance(image, np.ndarray):
        return None
    raise InputError(
        f"{name}: a {type(image).__name__} is not an image.",
        "Give a Pillow image, a path, the bytes of a file, or an array.",
    )


def read_image_file(path: str | Path) -> bytes:
    """Read an image file.

    Raises:
        InputError: it is missing, cannot be read, or is larger than `MAX_BYTES`.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    return _checked_length(data, str(path))


def _checked_length(data: bytes, name: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: an image file of more than {MAX_BYTES // 2**20} MiB is not read.", "Remove it.")
    return data


def _unloaded_file(image: Image.Image, name: str) -> bytes | None:
    """Return the file of a Pillow image that was opened and not changed since; None if it has none."""
    if not isinstance(image, ImageFile.ImageFile) or image.format not in {*FORMATS, "MPO"} or image.tell():
        return None
    if image.tile and image.fp is not None:
        position = image.fp.tell()
        image.fp.seek(0)
        data: bytes = image.fp.read(MAX_BYTES + 1)
        image.fp.seek(position)
        return _checked_length(data, name)
    if image.format == "TIFF" and image.readonly and image.filename:  # memory-mapped, and not turned upright by Pillow
        return read_image_file(os.fsdecode(image.filename))
    return None


def _from_array(array: NDArray[np.uint8], name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"{name}: an array of {array.dtype} {array.shape} is not an image.", "Give uint8 of shape (H, W, 3), RGB."
        )
    return Image.fromarray(np.ascontiguousarray(array))


# From bytes to upright RGB.


class TooManyPixelsError(InputError):
    """An image with more pixels than are decoded."""

    def __init__(self, name: str, pixels: str, most: int) -> None:
        super().__init__(f"{name}: {pixels} are too many.", f"Make it smaller than {most / 1e6:,.0f} million pixels.")


class UnknownFormatError(InputError):
    """Bytes that are not an image in one of `FORMATS`."""


def open_image(data: bytes, name: str = "image", max_pixels: int | None = None) -> ImageFile.ImageFile:
    """Read an image's header. `check_limits` must have accepted its structure.

    Args:
        data: the bytes of an image file.
        name: what errors call the image.
        max_pixels: refuse more; None: `MAX_PIXELS`.

    Raises:
        TooManyPixelsError: it has more.
        UnknownFormatError: not an image in one of `FORMATS`.
        InputError: damaged.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        what = "empty" if not data else "not an image in a format that can be read"
        remedy = "Use JPEG, PNG, WebP, BMP, GIF, TIFF or PPM, or remove it."
        raise UnknownFormatError(f"{name}: {what}.", remedy) from None
    except Image.DecompressionBombError:
        raise TooManyPixelsError(name, "its pixels", most) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise _damaged(name, error) from None
    if image.width * image.height > most:
        raise TooManyPixelsError(name, f"{image.width} × {image.height} pixels", most)
    return image


def _memory_turn(image: ImageFile.ImageFile, size: int | None) -> AbstractContextManager[object]:
    """Set the reduced size of a JPEG; return the lock to decode under, a real one for large images."""
    full = image.width * image.height
    if size is not None:
        image.draft(None, (DRAFT_SCALE * size, DRAFT_SCALE * size))
    pixels = full if image.info.get("progressive") else image.width * image.height
    return _one_large_image if pixels > LARGE_IMAGE_PIXELS else nullcontext()


def _to_upright_rgb(image: Image.Image, data: bytes | None, name: str) -> Image.Image:
    """Load an image and turn it into upright RGB. `data`: its file, if it has one."""
    try:
        deep = has_deep_colour(image)
        image.load()
        turn = UPRIGHT.get(_orientation(image))  # after loading, since Pillow turns TIFFs when it loads them
        image = _to_rgb(image, data if deep else None)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(name, error) from None
    return image.transpose(turn) if turn is not None else image


def _damaged(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: damaged image ({error}).", "Replace or remove it.")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or the EXIF block cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the pixels may be whole although the EXIF block is broken
        return 1


def _to_rgb(image: Image.Image, deep: bytes | None) -> Image.Image:
    """Convert to 8-bit RGB in sRGB on white. `deep`: the file, if its colours have 16 bits."""
    if is_deep(image) or deep is not None:
        image = to_eight_bits(image, deep)
    if image.info.get("icc_profile") or image.mode == "LAB":
        image = to_srgb(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


# Cutting and resizing.


def _crop(image: Image.Image, box: tuple[int, int, int, int], name: str) -> Image.Image:
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        raise InputError(
            f"{name}: the box {tuple(box)} is outside of the image, which has {image.width} × {image.height} pixels.",
            "A box is left, top, right, bottom in pixels.",
        )
    return image.crop((left, top, right, bottom))


def resize(image: Image.Image, height: int, width: int, crop_mode: CropMode = "center") -> Image.Image:
    """Resize an upright RGB image as `decode` does. An image that has the size already is returned as it is."""
    if image.size == (width, height):
        return image
    if isinstance(crop_mode, ResizeCrop):
        return _resize_then_crop(image, height, width, crop_mode)
    if crop_mode == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if max(height / image.height, width / image.width) == 1:  # only cut it: ImageOps.fit would resample half pixels
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def resized_side(size: int, crop_mode: CropMode) -> int:
    """The length of the shorter side before anything is cut off, for an input of `size` pixels; see `load_image`."""
    return crop_mode.resized(size) if isinstance(crop_mode, ResizeCrop) else size


def _resize_then_crop(image: Image.Image, height: int, width: int, crop: ResizeCrop) -> Image.Image:
    """`ResizeCrop`, with the rounding of torchvision's `Resize` and `CenterCrop`.

    Whole, a thin image would take gigabytes: 1 × 65,000 pixels become 256 × 16,640,000. Of such an image the part that
    is kept is resized alone, to pixels that differ by at most 1.
    """
    tall, wide = crop.resized(height), crop.resized(width)
    if not crop.squash:
        if tall * image.width >= wide * image.height:
            wide = int(tall * image.width / image.height)
        else:
            tall = int(wide * image.height / image.width)
    left, top = round((wide - width) / 2), round((tall - height) / 2)
    method = Image.Resampling[crop.interpolation.upper()]
    if wide * tall > MAX_RESIZED_PIXELS:
        x, y = image.width / wide, image.height / tall
        box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
        return image.resize((width, height), method, box=box)
    resized = image.resize((wide, tall), method)
    return resized.crop((left, top, left + width, top + height))
