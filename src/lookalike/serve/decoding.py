"""From the bytes of an image to the model's input, in a few threads of their own.

What a body may hold is told by its first bytes, never by its name; its structure is looked at and its pixels are
counted before they are made.
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
from lookalike.gallery.sources.base import SourceImage
from lookalike.hardware import cores
from lookalike.image import CropMode, TooManyPixelsError, UnknownFormatError, check_limits, decode, open_image
from lookalike.serve.errors import RefusedError

SAID = "Use JPEG, PNG, WebP, GIF, BMP or TIFF."
UPLOADED = "upload:"  # and the SHA-256 of its content: the path of what was added over HTTP

T = TypeVar("T")


@dataclass(frozen=True)
class Upload:
    """A picture that is to be kept: (size, size, 3) uint8, its thumbnail, the SHA-256 and size of its file."""

    pixels: NDArray[np.uint8]
    thumbnail: bytes
    digest: bytes
    bytes: int


class ImageDecoder:
    """Decodes for one model.

    Args:
        size: pixels of the side of what the model sees.
        crop_mode: how a picture becomes that square.
        max_pixels: of a picture.
    """

    def __init__(self, size: int, crop_mode: CropMode, max_pixels: int) -> None:
        self._size, self._crop_mode, self._max_pixels = size, crop_mode, max_pixels
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="lookalike-decode")

    def close(self) -> None:
        """End the threads; what they are at is finished."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Do something in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def decode(self, files: Sequence[bytes]) -> list[NDArray[np.uint8]]:
        """The pictures as the model sees them, (size, size, 3) uint8.

        Raises:
            RefusedError: 422, one cannot be read; it is named by its place.
        """
        return await self._all(files, self._pixels)

    async def uploads(self, files: Sequence[bytes]) -> list[Upload]:
        """The pictures as the model and the gallery want them.

        Raises:
            RefusedError: as `decode`.
        """
        return await self._all(files, self._upload)

    async def _all(self, files: Sequence[bytes], work: Callable[[bytes, str], T]) -> list[T]:
        names = ["image"] if len(files) == 1 else [f"image {place}" for place in range(1, len(files) + 1)]
        jobs = [self.run(partial(work, data, name)) for data, name in zip(files, names, strict=True)]
        done = await asyncio.gather(*jobs, return_exceptions=True)
        good = [one for one in done if not isinstance(one, BaseException)]
        for one in done:
            if isinstance(one, BaseException):
                raise one  # the first of them
        return good

    def _pixels(self, data: bytes, name: str) -> NDArray[np.uint8]:
        try:
            self._check(data, name)
            return decode(data, self._size, crop_mode=self._crop_mode, name=name)
        except (InputError, MemoryError) as error:
            raise _unreadable(name, error) from None

    def _upload(self, data: bytes, name: str) -> Upload:
        digest = hashlib.sha256(data).digest()
        item = SourceImage(f"{UPLOADED}{digest.hex()}", len(data), 0, lambda: data)
        self._check(data, name)
        found = decode_image(ImageBytes(item, data, digest), self._size, self._crop_mode)
        if not isinstance(found, DecodedImage):
            raise _unreadable(name, InputError(f"{name}: {found.reason}."))
        return Upload(found.pixels, found.thumbnail, digest, len(data))

    def _check(self, data: bytes, name: str) -> None:
        """Refuse what is not let in, by its first bytes and its structure; nothing is decoded."""
        try:
            check_limits(data, name)
            kind = open_image(data, name, self._max_pixels).format
        except TooManyPixelsError:
            raise self._too_large(name) from None
        except UnknownFormatError as error:
            raise RefusedError(422, error.message, SAID) from None
        except InputError as error:
            raise _unreadable(name, error) from None
        if kind == "PPM":
            raise RefusedError(422, f"{name}: not an image in a format that can be read.", SAID)

    def _too_large(self, name: str) -> RefusedError:
        return RefusedError(422, f"{name}: more than {self._max_pixels:,} pixels.", "Make it smaller.",
                       limit="max_pixels", value=self._max_pixels)  # fmt: skip


def _unreadable(name: str, error: Exception) -> RefusedError:
    """Without the decoder's own words, which speak of memory addresses and bytes."""
    if isinstance(error, MemoryError):
        return RefusedError(422, f"{name}: not enough memory to decode it.", "Make it smaller.")
    text = error.message if isinstance(error, InputError) else f"{name}: damaged image."
    return RefusedError(422, f"{text.partition(' (')[0].rstrip('.')}.", f"Replace it. {SAID}")
