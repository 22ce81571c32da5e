"""Decode uploaded images in a pool of threads.

The format is told by the content, never by a name or a header. An image's structure and its number of pixels are
checked before anything is decoded.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.decode import DecodedImage, ImageBytes, decode_image
from lookalike.gallery.query import Box
from lookalike.gallery.sources.base import SourceImage
from lookalike.hardware import cores
from lookalike.image import (
    CropMode,
    TooManyPixelsError,
    UnknownFormatError,
    check_limits,
    decode,
    decode_part,
    open_image,
)
from lookalike.serve.errors import RefusedError

FORMATS_REMEDY = "Use JPEG, PNG, WebP, GIF, BMP or TIFF."
UPLOAD_PREFIX = "upload:"  # of the path of an uploaded item; the SHA-256 of its file follows

T = TypeVar("T")


@dataclass(frozen=True)
class Upload:
    """An image to store: its pixels (size, size, 3) uint8, a small JPEG, the SHA-256 and the size of its file."""

    pixels: NDArray[np.uint8]
    thumbnail: bytes
    digest: bytes
    bytes: int

    @property
    def path(self) -> str:
        """The path of the item, which has no file."""
        return f"{UPLOAD_PREFIX}{self.digest.hex()}"


class ImageDecoder:
    """Decodes images for one model.

    Args:
        size: side of the model's square input in pixels.
        crop_mode: how an image becomes square.
        max_pixels: of an image.
    """

    def __init__(self, size: int, crop_mode: CropMode, max_pixels: int) -> None:
        self._size, self._crop_mode, self._max_pixels = size, crop_mode, max_pixels
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="lookalike-decode")

    def close(self) -> None:
        """Finish the running work and end the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def decode(self, files: Sequence[bytes], box: Box | None = None) -> list[NDArray[np.uint8]]:
        """Decode images for the model: (size, size, 3) uint8 each.

        Args:
            files: the images.
            box: use only this part of the first image: left, top, right, bottom in pixels of the upright image.

        Raises:
            RefusedError: 422, an image cannot be read, or the box is not inside of it; the message gives its position.
        """
        boxes = [box, *[None] * (len(files) - 1)]
        return await self._for_each(files, self._decode, boxes)

    async def decode_uploads(self, files: Sequence[bytes]) -> list[Upload]:
        """Decode images for the model and the gallery.

        Raises:
            RefusedError: as `decode`.
        """
        return await self._for_each(files, self._decode_upload)

    async def _for_each(self, files: Sequence[bytes], work: Callable[..., T], *more: Sequence[object]) -> list[T]:
        """Run `work` on all files at once, with their names and `more` values of each; if some fail, raise the first
        error once all have ended.
        """
        names = ["image"] if len(files) == 1 else [f"image {number}" for number in range(1, len(files) + 1)]
        jobs = [self.run(partial(work, *values)) for values in zip(files, names, *more, strict=True)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        done: list[T] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            done.append(result)
        return done

    def _decode(self, data: bytes, name: str, box: Box | None) -> NDArray[np.uint8]:
        self._check(data, name)
        try:
            if box is not None:
                return decode_part(data, box, self._size, crop_mode=self._crop_mode, name=name)
            return decode(data, self._size, crop_mode=self._crop_mode, name=name)
        except (InputError, MemoryError) as error:
            raise _unreadable(name, error) from None

    def _decode_upload(self, data: bytes, name: str) -> Upload:
        self._check(data, name)
        digest = hashlib.sha256(data).digest()
        image = SourceImage(f"{UPLOAD_PREFIX}{digest.hex()}", len(data), 0, lambda: data)
        decoded = decode_image(ImageBytes(image, data, digest), self._size, self._crop_mode)
        if not isinstance(decoded, DecodedImage):
            raise _unreadable(name, InputError(f"{name}: {decoded.reason}."))
        return Upload(decoded.pixels, decoded.thumbnail, digest, len(data))

    def _check(self, data: bytes, name: str) -> None:
        """Refuse an image by its header and structure, before it is decoded."""
        try:
            check_limits(data, name)
            format = open_image(data, name, self._max_pixels).format
        except TooManyPixelsError:
            raise RefusedError(
                422, f"{name}: more than {self._max_pixels:,} pixels.", "Make it smaller.",
                limit="max_pixels", value=self._max_pixels,
            ) from None  # fmt: skip
        except UnknownFormatError as error:
            raise RefusedError(422, error.message, FORMATS_REMEDY) from None
        except (InputError, MemoryError) as error:
            raise _unreadable(name, error) from None
        if format == "PPM":
            raise RefusedError(422, f"{name}: not an image in a format that can be read.", FORMATS_REMEDY)


def _unreadable(name: str, error: Exception) -> RefusedError:
    """A decoder's error without the decoder's own words, which may hold memory addresses."""
    if isinstance(error, MemoryError):
        return RefusedError(422, f"{name}: not enough memory to decode it.", "Make it smaller.")
    message = error.message if isinstance(error, InputError) else f"{name}: damaged image."
    return RefusedError(422, f"{message.partition(' (')[0].rstrip('.')}.", f"Replace it. {FORMATS_REMEDY}")
