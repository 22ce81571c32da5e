"""The pack: the images of a catalog, decoded once at one size into a memory-mapped uint8 file.

    NAME-SIZEpx-XXXX/images.npy   (N, size, size, 3) uint8 RGB, row i of the catalog
                     pack.json    fingerprint of the catalog, the rows, SHA-256 of images.npy

Training and evaluation read images from packs only, so they never wait for decoding. If the source changes, its
fingerprint changes and the catalog is packed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from lookalike.data.catalog import Catalog
from lookalike.errors import InputError
from lookalike.files import atomic_folder, cannot_write, sweep
from lookalike.hardware import cores, stoppable_threads
from lookalike.image import CropMode, decode

FORMAT = 2  # changes with the file format and with the way images are decoded
CHUNK = 256  # images decoded by a thread at a time
ADVICE = "Make room there, or set LOOKALIKE_CACHE to a folder that can be written."
RESERVED_BYTES = 64 << 20  # left free on the disk
MAX_NAMED = 5  # undecodable images named in an error

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pack:
    """Decoded images with their catalog.

    Args:
        images: (N, size, size, 3) uint8 RGB, memory-mapped and read-only; row i is row i of `catalog`.
        catalog: the rows that are in the pack.
        skipped: paths that could not be decoded and were left out.
        folder: the folder of the pack.
    """

    images: NDArray[np.uint8]
    catalog: Catalog
    skipped: tuple[str, ...]
    folder: Path

    @property
    def size(self) -> int:
        return int(self.images.shape[1])

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64; -1 if unknown."""
        return self.catalog.labels.astype(np.int64)

    @cached_property
    def content(self) -> str:
        """SHA-256 (hex) of pixels, labels and classes, which does not depend on where the files are."""
        about = [_header(self.folder)["sha256"], self.catalog.class_names, self.catalog.class_ids]
        return hashlib.sha256(json.dumps(about).encode() + self.labels.astype("<i8").tobytes()).hexdigest()

    def verify(self) -> None:
        """Read the whole file and compare its SHA-256 with the stored one.

        Raises:
            InputError: the pack is damaged.
        """
        if _sha256(self.folder / "images.npy") != _header(self.folder)["sha256"]:
            raise InputError(
                f"{self.folder}: this pack is damaged.", "Delete the folder; it is made again when needed."
            )


@dataclass(frozen=True)
class _How:
    """How images are decoded; see `pack`."""

    size: int
    crop_boxes: bool
    crop_mode: CropMode
    skip_undecodable: bool


def pack(
    catalog: Catalog,
    size: int,
    *,
    cache: Path | None = None,
    crop_boxes: bool = False,
    crop_mode: CropMode = "center",
    skip_undecodable: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Pack:
    """Return the pack of a catalog at a size, from the cache or decoded now by several threads.

    Args:
        catalog: what to decode.
        size: side of the square images in pixels.
        crop_boxes: cut each image to its box first, if it has one.
        crop_mode: "center" to keep proportions and cut the sides off, "squash" to keep the whole image.
        cache: folder of all packs; by default `packs` in $LOOKALIKE_CACHE or the user's cache folder.
        skip_undecodable: leave out images that cannot be decoded instead of raising an error.
        workers: threads; by default one per core.
        progress: called with (images done, images in all) while decoding.

    Raises:
        InputError: images that cannot be decoded (with their paths), none left, no space, a folder that cannot be
            written.
    """
    if not len(catalog):
        raise InputError(f"{catalog.root}: there are no images to pack.", "Choose another split.")
    has_boxes = any(box is not None for box in catalog.boxes)
    cut = f" crop_boxes={crop_boxes}" if has_boxes else ""  # without boxes, the option makes no difference
    cut += f" {crop_mode}" if crop_mode != "center" else ""
    key = hashlib.sha256(f"{FORMAT} {catalog.fingerprint} {skip_undecodable}{cut}".encode()).hexdigest()
    folder = _packs(cache) / f"{catalog.name}-{size}px-{key[:16]}"
    if not _is_whole(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error, ADVICE) from None
        try:
            _make(catalog, _How(size, crop_boxes, crop_mode, skip_undecodable), folder, workers or cores(), progress)
        except InputError:
            if not _is_whole(folder):  # otherwise another process made the same pack in the meantime
                raise
    header = _header(folder)
    kept = catalog.select(header["rows"]) if header["skipped"] else catalog
    images: NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="r")
    return Pack(images, kept, tuple(header["skipped"]), folder)


def _make(catalog: Catalog, how: _How, folder: Path, workers: int, progress: Progress | None) -> None:
    """Decode the images into a new pack."""
    sweep(folder.parent, ".*.partial", locked=True)
    needed = len(catalog) * how.size * how.size * 3
    if (free := shutil.disk_usage(folder.parent).free) < needed + RESERVED_BYTES:
        raise InputError(
            f"{folder.parent}: {needed / 1e9:.1f} GB are needed for the pack and {free / 1e9:.1f} GB are free.",
            "Free some, set LOOKALIKE_CACHE to a folder on another disk, or use a smaller data.image_size.",
        )
    with atomic_folder(folder, remedy=ADVICE) as beside:
        images = _create(beside / "images.npy", len(catalog), how.size)
        faults: list[tuple[int, InputError]] = []
        starts = range(0, len(catalog), CHUNK)
        with stoppable_threads(workers) as (threads, stop):
            work = partial(_decode_chunk, catalog, how, images, stop)
            for start, found in zip(starts, threads.map(work, starts), strict=True):
                faults += found
                if progress:
                    progress(min(start + CHUNK, len(catalog)), len(catalog))
        rows = _without_faults(catalog, faults, how.skip_undecodable)
        if faults:
            whole = images
            images = _create(beside / "kept.npy", len(rows), how.size)
            for to, row in enumerate(rows):
                images[to] = whole[row]
            del whole
            (beside / "kept.npy").replace(beside / "images.npy")
        images.flush()
        header = {
            "format": FORMAT,
            "name": catalog.name,
            "source": str(catalog.root),
            "fingerprint": catalog.fingerprint,
            "size": how.size,
            "crop_boxes": how.crop_boxes,
            "crop_mode": str(how.crop_mode),
            "images": len(rows),
            "rows": rows if faults else None,
            "skipped": [catalog.paths[row] for row, _ in faults],
            "sha256": _sha256(beside / "images.npy"),
        }
        (beside / "pack.json").write_text(json.dumps(header), encoding="utf-8")
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)


def _create(path: Path, count: int, size: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    """A new file for `count` images, memory-mapped, with its room on the disk taken at once: to write into a mapped
    file when the disk is full would not raise an error but end the process.
    """
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return images


def _decode_chunk(
    catalog: Catalog, how: _How, images: NDArray[np.uint8], stop: threading.Event, start: int
) -> list[tuple[int, InputError]]:
    """Decode rows `start` to `start + CHUNK` into `images`; the faults found, by row. Ends early once it is stopped."""
    faults = []
    for row in range(start, min(start + CHUNK, len(catalog))):
        if stop.is_set():
            break
        try:
            data = catalog.read_bytes(row)
            box = catalog.boxes[row] if how.crop_boxes else None
            images[row] = decode(data, how.size, box=box, crop_mode=how.crop_mode, name=catalog.paths[row])
        except InputError as error:
            faults.append((row, error))
    return faults


def _without_faults(catalog: Catalog, faults: list[tuple[int, InputError]], skip: bool) -> list[int]:
    """The rows that could be decoded.

    Raises:
        InputError: faults that are not to be skipped, or nothing left.
    """
    if faults and not skip:
        named = "; ".join(error.message.rstrip(".") for _, error in faults[:MAX_NAMED])
        more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise InputError(
            f"{catalog.root}: {len(faults)} of {len(catalog)} images cannot be decoded: {named}{more}.",
            f"Mend or remove them ('lookalike data check {catalog.root}' lists all), "
            "or leave them out (train: data.skip_undecodable=true; fit: --skip-undecodable).",
        )
    bad = {row for row, _ in faults}
    rows = [row for row in range(len(catalog)) if row not in bad]
    if not rows:
        raise InputError(f"{catalog.root}: not one image can be decoded.", "Are these images?")
    return rows


def _is_whole(folder: Path) -> bool:
    """Whether the folder holds a pack of this format whose file has the length that its header promises."""
    try:
        header = _header(folder)
        with (folder / "images.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            length = file.tell() + int(np.prod(shape)) * dtype.itemsize
            return header["format"] == FORMAT and os.fstat(file.fileno()).st_size == length
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _header(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "pack.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _packs(cache: Path | None) -> Path:
    if cache is not None:
        return cache
    return Path(os.environ.get("LOOKALIKE_CACHE") or platformdirs.user_cache_dir("lookalike")).expanduser() / "packs"
