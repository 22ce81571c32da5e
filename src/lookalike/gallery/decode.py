"""From the bytes of a file to what a gallery keeps of it, all but the vector."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import InputError
from lookalike.gallery.sources.base import SourceImage
from lookalike.gallery.store.base import FailedFile
from lookalike.image import CropMode, load_image, resize

SIDE = 192  # pixels of a thumbnail's longer side, at most
QUALITY = 80  # of its JPEG: 6 kB for a photograph of 192 × 144
SMALL = 8192  # bytes: a JPEG no larger than this and `SIDE` is its own thumbnail
BARE = frozenset({"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "progressive", "progression", "adobe",
                  "adobe_transform"})  # what a thumbnail may carry besides its pixels: no place, no owner  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """A file that has been read: its bytes, and their SHA-256."""

    item: SourceImage
    data: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture as it goes before the network, (size, size, 3) uint8, and its thumbnail."""

    item: SourceImage
    digest: bytes
    pixels: NDArray[np.uint8]
    thumbnail: bytes


def read_image_bytes(item: SourceImage) -> ImageBytes | FailedFile:
    """Read a file. One that cannot be read is tried again the next time: what is amiss may lie beside the file."""
    try:
        data = item.load()
    except OSError as error:
        return FailedFile(item.path, f"cannot be read ({error.strerror or error})")
    except InputError as error:
        return FailedFile(item.path, error.message)
    except MemoryError:
        return FailedFile(item.path, "not enough memory to read it")
    return ImageBytes(item, data, hashlib.sha256(data).digest())


def decode_image(content: ImageBytes, size: int, crop_mode: CropMode = "center") -> DecodedImage | FailedFile:
    """Decode a picture once, for the network and for the eye.

    Args:
        content: what was read.
        size: pixels of the side of what the network sees; the same pixels as `lookalike.image.decode` gives.
        crop_mode: how it becomes a square.
    """
    item = content.item
    try:
        image = load_image(content.data, size, name=item.path)
        return DecodedImage(
            item, content.digest, np.array(resize(image, size, size, crop_mode)), _thumbnail(image, content.data)
        )
    except InputError as error:
        reason = error.message.removeprefix(f"{item.path}: ").removesuffix(".")
    except MemoryError:  # says nothing of the file: without its size and time, it is tried again
        return FailedFile(item.path, "not enough memory to decode it")
    return FailedFile(item.path, reason, item.size, item.modified)


def _thumbnail(image: Image.Image, data: bytes) -> bytes:
    """A small JPEG of an upright RGB picture; never larger than the picture."""
    fits = max(image.size) <= SIDE
    if fits and image.format == "JPEG" and len(data) <= SMALL and image.info.keys() <= BARE:
        return data
    if not fits:
        scale = SIDE / max(image.size)
        width, height = (max(1, round(scale * length)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(file, "JPEG", quality=QUALITY)  # of the pixels alone
    return file.getvalue()
