"""The first stage of adding: what is new is told from what is there, read, and decoded.

Three questions, the cheap ones first. Is there a row of this path, size and time of change? Then nothing is read. Is
there a row of the same content (SHA-256), under whatever path? Then its vector and thumbnail serve again. Only the rest
is decoded.
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

LOOKED_UP = 512  # items whose paths are looked up at once
READ = 64  # files in memory at once, and
MOST_BYTES = 64 * 2**20  # their bytes, beyond one file

ItemT = TypeVar("ItemT")
Vector = NDArray[np.float32]


class ExistingItems(Protocol):
    """What is there: that much of a store, or of the shards of one."""

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """The rows of those paths that are there."""
        ...

    def rejected(self) -> list[FailedFile]:
        """Files that could not be read, by path."""
        ...


@dataclass
class IngestBatch:
    """Some files on their way into the store. Of each item that was listed there is one entry, somewhere.

    Args:
        decoded: pictures that need a vector.
        rows: finished: their content was there already.
        rejected: could not be read.
        skipped: were there as they are now.
        known: could not be read before, and have not changed.
        young: changed so recently that they may still be being written; left for the next time.
        forgiven: paths of files that were rejected before and are as their rows say again.
        relabelled: id, label and metadata of rows that are there and are now listed with others.
        before: the rows that are there, by path.
    """

    decoded: list[DecodedImage] = field(default_factory=list)
    rows: list[NewItem] = field(default_factory=list)
    rejected: list[FailedFile] = field(default_factory=list)
    skipped: int = 0
    known: int = 0
    young: int = 0
    forgiven: list[str] = field(default_factory=list)
    relabelled: list[tuple[int, str | None, Mapping[str, Value] | None]] = field(default_factory=list)
    before: Mapping[str, GalleryItem] = field(default_factory=dict)
    known_content: int = 0  # of `rows`, those that came without embedding


def prepare_batches(
    store: Store,
    listings: Iterable[ImageSource],
    size: int,
    *,
    crop_mode: CropMode = "center",
    label: str | None = None,
    too_young: Callable[[SourceImage], bool] | None = None,
    unwanted: threading.Event | None = None,
) -> Generator[IngestBatch]:
    """Everything that is listed, in batches of at most `LOOKED_UP` items.

    A path that is listed twice counts once. Memory: the bytes of `READ` files twice (at most 128 MiB, or two files),
    and a decoded picture for each core.

    Args:
        store: what is there; it is only read, and from this thread.
        listings: what to look at.
        size: of the pictures that the network sees.
        crop_mode: how they become squares.
        label: what all of them are, whatever their listing says.
        too_young: says of which files to wait a little longer.
        unwanted: once it is set, no further picture is decoded: this ends with an exception.
    """

    def decode(content: ImageBytes) -> DecodedImage | FailedFile:
        if unwanted is not None and unwanted.is_set():
            raise CancelledError
        return decode_image(content, size, crop_mode)

    with ThreadPoolExecutor(cores(), thread_name_prefix="lookalike-decode") as threads:
        for batch, todo in sorted_out(store, listings, label=label, too_young=too_young):
            if not todo:
                yield batch
            for content in _ahead_by_one(threads, todo):
                yield _decoded(store, batch, content, decode, label, threads)
                batch = IngestBatch(before=batch.before)


def sorted_out(
    known: ExistingItems,
    listings: Iterable[ImageSource],
    *,
    label: str | None = None,
    too_young: Callable[[SourceImage], bool] | None = None,
) -> Generator[tuple[IngestBatch, list[SourceImage]]]:
    """What is listed, told from what is there: batches with all that needs no reading, and the items that do.

    Args:
        known: what is there; it is only read.
        listings: what to look at; at most `LOOKED_UP` items at a time.
        label: what all of them are, whatever their listing says.
        too_young: says of which files to wait a little longer.
    """
    refused = {file.path: (file.size, file.modified) for file in known.rejected()}
    seen: set[int] = set()  # hashes of paths: a path takes several times the memory
    for found in _chunks(_all(listings), LOOKED_UP, lambda one: one.held if isinstance(one, SourceImage) else 0):
        batch, todo = IngestBatch(), []
        once = [one for one in found if _new(seen, one.path)]
        batch.skipped = len(found) - len(once)
        batch.before = known.by_path([one.path for one in once])
        for one in once:
            if refused.get(one.path) == (one.size, one.modified) and one.modified:
                batch.known += 1
            elif isinstance(one, FailedFile):
                batch.rejected.append(one)
            elif too_young is not None and too_young(one):
                batch.young += 1
            elif _is_there(one, batch.before.get(one.path), batch, label):
                batch.skipped += 1
                batch.forgiven += [one.path] if one.path in refused else []
            else:
                todo.append(one)
        yield batch, todo


def _decoded(
    store: Store,
    batch: IngestBatch,
    contents: list[ImageBytes | FailedFile],
    decode: Callable[[ImageBytes], DecodedImage | FailedFile],
    label: str | None,
    threads: ThreadPoolExecutor,
) -> IngestBatch:
    """The batch with these files in it, decoded or found again."""
    whole = [one for one in contents if isinstance(one, ImageBytes)]
    batch.rejected += [one for one in contents if isinstance(one, FailedFile)]
    reusable = _reusable(store, [one.digest for one in whole])
    for one in whole:
        if (known := reusable.get(one.digest)) is not None:
            row, vector, thumbnail = known
            of_path = batch.before.get(one.item.path)
            batch.rows.append(new_row(one.item, one.digest, vector, thumbnail, row.dhash, of_path, label))
    fresh = [one for one in whole if one.digest not in reusable]
    for result in threads.map(decode, fresh):
        if isinstance(result, FailedFile):
            batch.rejected.append(result)
        else:
            batch.decoded.append(result)
    return batch


def _reusable(store: Store, digests: list[bytes]) -> dict[bytes, tuple[GalleryItem, Vector, bytes]]:
    """Of content that is there: a row, its vector and thumbnail. None of it where one of them is damaged."""
    try:
        rows, vectors = with_vectors(store, list(store.by_digest(digests).values()))
        return {
            row.digest: (row, vector, store.thumbnail(row.id) or b"") for row, vector in zip(rows, vectors, strict=True)
        }
    except InputError:
        return {}


def new_row(
    item: SourceImage,
    digest: bytes,
    vector: Vector,
    thumbnail: bytes,
    look: int,
    before: GalleryItem | None,
    label: str | None,
) -> NewItem:
    """A row for an item. What is not said of it is taken over from the row that it replaces."""
    had = None if before is None else before.label
    named = _composed(next((one for one in (label, item.label, had, item.folder_label) if one is not None), None))
    metadata = item.metadata if item.metadata is not None else before.metadata if before is not None else {}
    return NewItem(item.path, digest, vector, item.size, item.modified, named, metadata, thumbnail, look)


def _is_there(item: SourceImage, row: GalleryItem | None, batch: IngestBatch, label: str | None) -> bool:
    """Whether the row says all of the item; where only label and metadata differ, that is noted."""
    if row is None or (row.size, row.modified) != (item.size, item.modified):
        return False
    named = label if label is not None else item.label
    if named is None and row.label is None:
        named = item.folder_label
    named = _composed(named)
    metadata = item.metadata if item.listed else None
    if (named is not None and named != row.label) or (metadata is not None and dict(metadata) != dict(row.metadata)):
        batch.relabelled.append((row.id, named, metadata))
    return True


def _composed(label: str | None) -> str | None:
    """A label as it is kept: letters composed (NFC), so that names that look the same are the same."""
    return None if label is None else unicodedata.normalize("NFC", label)


def _ahead_by_one(threads: ThreadPoolExecutor, items: list[SourceImage]) -> Iterator[list[ImageBytes | FailedFile]]:
    """Files read a few at a time; the next few are being read while these are used."""
    before = None
    for some in _chunks(iter(items), READ, lambda item: item.size, MOST_BYTES):
        now = threads.map(read_image_bytes, some)
        if before is not None:
            yield list(before)
        before = now
    if before is not None:
        yield list(before)


def _all(listings: Iterable[ImageSource]) -> Iterator[ListedImage]:
    for listing in listings:
        yield from listing.items()


def _new(seen: set[int], path: str) -> bool:
    mark = hash(path)
    if mark in seen:
        return False
    seen.add(mark)
    return True


def _chunks(
    items: Iterator[ItemT], most: int, weight: Callable[[ItemT], int], heaviest: int = MOST_BYTES
) -> Iterator[list[ItemT]]:
    """Items in order, at most so many at once and so heavy, one item at least."""
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
