"""From the bytes of a file to the network's input, the thumbnail and the digest."""

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
from lookalike.image import CropMode, load_image, resize, resized_side

THUMBNAIL_SIDE = 192  # pixels of the longer side, at most
THUMBNAIL_QUALITY = 80  # of the JPEG: 6 kB for a photograph of 192 × 144
REUSED_BYTES = 8192  # a JPEG of at most this size and `THUMBNAIL_SIDE` is its own thumbnail,
# if its metadata hold nothing but these: no place, no owner
PLAIN_METADATA = frozenset(
    (
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
        "dpi",
        "progressive",
        "progression",
        "adobe",
        "adobe_transform",
    )
)


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """A file that has been read: its bytes, and their SHA-256."""

    source: SourceImage
    data: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """The input of the network, (size, size, 3) uint8, and the thumbnail of an image."""

    source: SourceImage
    digest: bytes
    pixels: NDArray[np.uint8]
    thumbnail: bytes


def read_image_bytes(image: SourceImage) -> ImageBytes | FailedFile:
    """Read a file. A file that cannot be read is tried again the next time, since the cause may lie elsewhere."""
    try:
        data = image.load()
    except OSError as error:
        return FailedFile(image.path, f"cannot be read ({error.strerror or error})")
    except InputError as error:
        return FailedFile(image.path, error.message)
    except MemoryError:
        return FailedFile(image.path, "not enough memory to read it")
    return ImageBytes(image, data, hashlib.sha256(data).digest())


def decode_image(content: ImageBytes, size: int, crop_mode: CropMode = "center") -> DecodedImage | FailedFile:
    """Decode an image once, for the network and for the thumbnail.

    Args:
        content: the file.
        size: side of the network's input in pixels; the pixels are those of `lookalike.image.decode`.
        crop_mode: how the image becomes a square.
    """
    source = content.source
    try:
        image = load_image(content.data, resized_side(size, crop_mode), name=source.path)
        pixels = np.array(resize(image, size, size, crop_mode))
        return DecodedImage(source, content.digest, pixels, _thumbnail(image, content.data))
    except InputError as error:
        reason = error.message.removeprefix(f"{source.path}: ").removesuffix(".")
    except MemoryError:  # no fault of the file: without its size and time, it is tried again
        return FailedFile(source.path, "not enough memory to decode it")
    return FailedFile(source.path, reason, source.size, source.modified)


def _thumbnail(image: Image.Image, data: bytes) -> bytes:
    """A small JPEG of an upright RGB image; never larger than the image."""
    fits = max(image.size) <= THUMBNAIL_SIDE
    if fits and image.format == "JPEG" and len(data) <= REUSED_BYTES and image.info.keys() <= PLAIN_METADATA:
        return data
    if not fits:
        scale = THUMBNAIL_SIDE / max(image.size)
        width, height = (max(1, round(scale * length)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(file, "JPEG", quality=THUMBNAIL_QUALITY)  # without metadata
    return file.getvalue()
