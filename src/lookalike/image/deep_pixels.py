"""Convert pixels of more than 8 bits to 8 bits, with a white level that is found in the image.

A file says how many bits a value takes, not how many are used: cameras, microscopes and scanners store 10, 12 or 14
bits in 16, and 8 in 32. Scaled by the nominal maximum, such images would be black. White is therefore the smallest of
255, 1023, 4095, 16383 and 65535 that no value exceeds, or the largest value if all are exceeded. For floating-point
values, 1 is a level too, and a level above four times the largest value is not used; the largest value is white
instead. If values are negative, the smallest is black and the largest white. The channels of a colour image share one
white level.
"""

from __future__ import annotations

import io
import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

WHITES = (255, 1023, 4095, 16383, 65535)
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339  # tags of a TIFF
OTHER_BYTE = {"B": "L", "L": "B", "N": {"little": "B", "big": "L"}[sys.byteorder]}  # by the end of Pillow's raw mode
DEEP_COLOURS = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")


def is_deep(image: Image.Image) -> bool:
    """Whether an image is gray with more than 8 bits."""
    return image.mode in {"I", "F"} or image.mode.startswith("I;16")


def has_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has 16-bit colours, of which Pillow would keep the upper 8 bits."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return False
    return _raw_mode(image).startswith(DEEP_COLOURS)


def to_eight_bits(image: Image.Image, data: bytes | None) -> Image.Image:
    """Convert a loaded image to 8 bits per channel; gray becomes "L", or "LA" if one gray level is transparent.

    Args:
        image: gray with more than 8 bits, or an image whose file has 16-bit colours.
        data: the file of an image with 16-bit colours.
    """
    if is_deep(image):
        made = _gray(image)
    else:
        colours = image.getextrema()[:3]
        assert data is not None
        if max(high for _, high in colours) > WHITES[-2] >> 8:  # type: ignore[misc]
            return image
        made = _colour(image, data)
    made.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return made


def _gray(image: Image.Image) -> Image.Image:
    values = np.asarray(image)  # (H, W)
    tags = image.tag_v2 if image.format == "TIFF" and hasattr(image, "tag_v2") else {}
    if image.mode == "I" and tags and tags.get(SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)
    gray = _scaled(values, declared=65535 if image.format == "PPM" and image.mode == "I" else None)
    if tags.get(PHOTOMETRIC) == 0:
        gray = 255 - gray  # white is zero
    made = Image.fromarray(gray)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        made.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return made


def _scaled(values: NDArray[np.generic], declared: int | None = None) -> NDArray[np.uint8]:
    """Scale values of any type and shape to 0..255, by the rule of this module."""
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        levels = [white for white in (1, *WHITES) if low >= 0 and high <= white < 4 * high]
        white, black = float(min(levels, default=high)), min(low, 0.0)
        values = np.nan_to_num(values, nan=black, posinf=white, neginf=black)
    else:
        low, high = int(values.min()), int(values.max())
        guessed = min((white for white in WHITES if low >= 0 and high <= white), default=high)
        white, black = declared or guessed, min(low, 0)
        if black == 0 and high < 1 << 16:
            table = (np.arange(high + 1, dtype=np.int64) * 255 + int(white) // 2) // int(white)
            return table.astype(np.uint8)[values]  # type: ignore[no-any-return]
    if white <= black:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float32) - black) * (255 / (white - black))
    return scaled.clip(0, 255).round().astype(np.uint8)


def _colour(image: Image.Image, data: bytes) -> Image.Image:
    """Combine the upper bytes, which the image holds, with the lower bytes of the file."""
    upper = np.asarray(image).astype(np.uint16)  # (H, W, C)
    values = upper << 8 | _lower(data, image.mode)
    made = [_scaled(values[:, :, :3])]
    made += [_scaled(values[:, :, 3:])] if values.shape[2] == 4 else []
    return Image.fromarray(np.concatenate(made, axis=2), image.mode)


def _lower(data: bytes, mode: str) -> NDArray[np.uint8]:
    """Return the lower byte of each value, (H, W, C) uint8, by making Pillow read it as the upper one."""
    with Image.open(io.BytesIO(data)) as again:
        raw = _raw_mode(again)
        if raw == "LA;16B":  # its four bytes as four channels
            again.tile = [again.tile[0]._replace(args="RGBA")]
            again._mode = "RGBA"
            lower = np.asarray(again)
            return lower[:, :, [1, 1, 1, 3]] if mode == "RGBA" else lower[:, :, [1, 3]]
        other = raw[:-1] + OTHER_BYTE[raw[-1]]
        again.tile = [
            tile._replace(args=other if isinstance(tile.args, str) else (other, *(tile.args or ())[1:]))
            for tile in again.tile
        ]
        return np.asarray(again)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    args: str | tuple[object, ...] | None = image.tile[0].args
    return str(args if isinstance(args, str) else args[0] if args else "")
