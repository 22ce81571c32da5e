"""The first stage of adding images: find out what is new, read it, and decode it.

There are three cases, the cheap ones first. If an item has the file's path, size and time of change, nothing is read.
If an item has the same content (SHA-256) under any path, its vector and thumbnail are used again. Only the other files
are decoded.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.decode import DecodedImage, ImageBytes, decode_image, read_image_bytes
from lookalike.gallery.sources.base import ImageSource, ListedImage, SourceImage
from lookalike.gallery.store.base import FailedFile, GalleryItem, NewItem, Store, Value, with_vectors
from lookalike.hardware import cores
from lookalike.image import CropMode

LOOKUP_BATCH = 512  # paths looked up at once
READ_BATCH = 64  # files in memory at once,
READ_BYTES = 64 * 2**20  # and their bytes, unless one file is larger

ItemT = TypeVar("ItemT")
Vector = NDArray[np.float32]


class ExistingItems(Protocol):
    """What is known already: a part of a store, or of a folder of shards."""

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """The items at these paths."""
        ...

    def rejected(self) -> list[FailedFile]:
        """The files that could not be read, by path."""
        ...


@dataclass
class IngestBatch:
    """Some listed files on their way into the store. Each is counted in exactly one of the first six fields.

    Args:
        decoded: images that need a vector.
        items: finished items.
        failed: files that could not be read.
        skipped: number of files that have not changed.
        failed_before: number of files that had failed before and have not changed.
        waiting: number of files that changed so recently that they may still be being written.
        recovered: paths of skipped files that had failed before.
        relabelled: id, label and metadata of skipped items that were listed with another label or metadata.
        before: the existing items, by path.
        reused: number of `items` that were not embedded.
    """

    decoded: list[DecodedImage] = field(default_factory=list)
    items: list[NewItem] = field(default_factory=list)
    failed: list[FailedFile] = field(default_factory=list)
    skipped: int = 0
    failed_before: int = 0
    waiting: int = 0
    recovered: list[str] = field(default_factory=list)
    relabelled: list[tuple[int, str | None, Mapping[str, Value] | None]] = field(default_factory=list)
    before: Mapping[str, GalleryItem] = field(default_factory=dict)
    reused: int = 0


def prepare_batches(
    known: ExistingItems,
    sources: Iterable[ImageSource],
    size: int,
    *,
    crop_mode: CropMode = "center",
    reuse: Store | None = None,
    label: str | None = None,
    too_young: Callable[[SourceImage], bool] | None = None,
    unwanted: threading.Event | None = None,
) -> Generator[IngestBatch]:
    """List, read and decode the images of sources, in batches of at most `LOOKUP_BATCH`.

    A path that is listed twice counts once. Memory: twice the bytes of `READ_BATCH` files (at most 128 MiB, or two
    files), and a decoded image for each core.

    Args:
        known: existing items; only read, and only from this thread.
        sources: of the images.
        size: side of the network's input in pixels.
        crop_mode: how an image becomes a square.
        reuse: store whose vectors are used again for files of the same content; None: decode all.
        label: label of all images, in place of their sources' labels.
        too_young: tells which files have to wait for the next time.
        unwanted: once this is set, no further image is decoded and the generator ends with an exception.
    """

    def decode(content: ImageBytes) -> DecodedImage | FailedFile:
        if unwanted is not None and unwanted.is_set():
            raise CancelledError
        return decode_image(content, size, crop_mode)

    with ThreadPoolExecutor(cores(), thread_name_prefix="lookalike-decode") as threads:
        for batch, todo in changed_images(known, sources, label=label, too_young=too_young):
            if not todo:
                yield batch
            for contents in _read_ahead(threads, todo):
                yield _decoded(reuse, batch, contents, decode, label, threads)
                batch = IngestBatch(before=batch.before)


def changed_images(
    known: ExistingItems,
    sources: Iterable[ImageSource],
    *,
    label: str | None = None,
    too_young: Callable[[SourceImage], bool] | None = None,
) -> Generator[tuple[IngestBatch, list[SourceImage]]]:
    """Compare the listed images with the existing items.

    Args:
        known: existing items; only read.
        sources: of the images.
        label: label of all images, in place of their sources' labels.
        too_young: tells which files have to wait for the next time.

    Yields:
        A batch with everything that need not be read, and the images that do.
    """
    failed = {file.path: (file.size, file.modified) for file in known.rejected()}
    seen: set[int] = set()  # hashes of paths: a path takes several times the memory
    for found in _chunks(_all(sources), LOOKUP_BATCH, lambda one: one.held if isinstance(one, SourceImage) else 0):
        batch, todo = IngestBatch(), []
        once = [one for one in found if _is_new(seen, one.path)]
        batch.skipped = len(found) - len(once)
        batch.before = known.by_path([one.path for one in once])
        for one in once:
            if failed.get(one.path) == (one.size, one.modified) and one.modified:
                batch.failed_before += 1
            elif isinstance(one, FailedFile):
                batch.failed.append(one)
            elif too_young is not None and too_young(one):
                batch.waiting += 1
            elif _is_unchanged(one, batch.before.get(one.path), batch, label):
                batch.skipped += 1
                batch.recovered += [one.path] if one.path in failed else []
            else:
                todo.append(one)
        yield batch, todo


def _decoded(
    reuse: Store | None,
    batch: IngestBatch,
    contents: list[ImageBytes | FailedFile],
    decode: Callable[[ImageBytes], DecodedImage | FailedFile],
    label: str | None,
    threads: ThreadPoolExecutor,
) -> IngestBatch:
    """The batch with these files in it, decoded or found again."""
    readable = [one for one in contents if isinstance(one, ImageBytes)]
    batch.failed += [one for one in contents if isinstance(one, FailedFile)]
    reusable = _reusable(reuse, [one.digest for one in readable])
    for one in readable:
        if (found := reusable.get(one.digest)) is not None:
            item, vector, thumbnail = found
            before = batch.before.get(one.source.path)
            batch.items.append(new_item(one.source, one.digest, vector, thumbnail, item.dhash, before, label))
    fresh = [one for one in readable if one.digest not in reusable]
    for result in threads.map(decode, fresh):
        if isinstance(result, FailedFile):
            batch.failed.append(result)
        else:
            batch.decoded.append(result)
    return batch


def _reusable(store: Store | None, digests: list[bytes]) -> dict[bytes, tuple[GalleryItem, Vector, bytes]]:
    """Item, vector and thumbnail of known content, by digest. Nothing if one of them is damaged."""
    if store is None:
        return {}
    try:
        items, vectors = with_vectors(store, list(store.by_digest(digests).values()))
        return {
            item.digest: (item, vector, store.thumbnail(item.id) or b"")
            for item, vector in zip(items, vectors, strict=True)
        }
    except InputError:
        return {}


def new_item(
    image: SourceImage,
    digest: bytes,
    vector: Vector,
    thumbnail: bytes,
    hash: int,
    before: GalleryItem | None,
    label: str | None,
) -> NewItem:
    """The item of an image. Label and metadata that are not given are taken from the item that it replaces.

    Args:
        image: from a source.
        digest: SHA-256 of the file.
        vector: (D,) float32 of length 1.
        thumbnail: JPEG.
        hash: difference hash.
        before: the item that is replaced.
        label: in place of the source's label.
    """
    old_label = None if before is None else before.label
    candidates = (label, image.label, old_label, image.folder_label)
    chosen = _composed(next((one for one in candidates if one is not None), None))
    metadata = image.metadata if image.metadata is not None else before.metadata if before is not None else {}
    return NewItem(image.path, digest, vector, image.size, image.modified, chosen, metadata, thumbnail, hash)


def _is_unchanged(image: SourceImage, item: GalleryItem | None, batch: IngestBatch, label: str | None) -> bool:
    """Whether the item's file has not changed. If its label or metadata have, the batch notes them."""
    if item is None or (item.size, item.modified) != (image.size, image.modified):
        return False
    chosen = label if label is not None else image.label
    if chosen is None and item.label is None:
        chosen = image.folder_label
    chosen = _composed(chosen)
    metadata = image.metadata if image.listed else None
    if (chosen is not None and chosen != item.label) or (
        metadata is not None and dict(metadata) != dict(item.metadata)
    ):
        batch.relabelled.append((item.id, chosen, metadata))
    return True


def _composed(label: str | None) -> str | None:
    """A label in Unicode normal form C, so that labels that look the same are equal."""
    return None if label is None else unicodedata.normalize("NFC", label)


def _read_ahead(threads: ThreadPoolExecutor, images: list[SourceImage]) -> Iterator[list[ImageBytes | FailedFile]]:
    """Read files a few at a time; the next few are read while these are used."""
    before = None
    for some in _chunks(iter(images), READ_BATCH, lambda image: image.size, READ_BYTES):
        now = threads.map(read_image_bytes, some)
        if before is not None:
            yield list(before)
        before = now
    if before is not None:
        yield list(before)


def _all(sources: Iterable[ImageSource]) -> Iterator[ListedImage]:
    for source in sources:
        yield from source.items()


def _is_new(seen: set[int], path: str) -> bool:
    key = hash(path)
    if key in seen:
        return False
    seen.add(key)
    return True


def _chunks(
    items: Iterator[ItemT], most: int, weight: Callable[[ItemT], int], heaviest: int = READ_BYTES
) -> Iterator[list[ItemT]]:
    """Chunks of at least one item, in order, of at most `most` items and a sum of weights up to `heaviest`."""
    chunk: list[ItemT] = []
    total = 0
    for item in items:
        if chunk and (len(chunk) == most or total + weight(item) > heaviest):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += weight(item)
    if chunk:
        yield chunk
