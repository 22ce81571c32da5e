"""Add images to a gallery: list, read, decode, embed and write, each stage while the others work.

    list > read > decode (a thread per core) -> embed (a thread per core) -> write (the caller's thread)

At most two batches wait between two stages. With a cluster, everything but the writing is done on its machines; see
`lookalike.gallery.ray`.

What is reported as done is on the disk, so the work can be stopped at any moment, even by SIGKILL. The same call
continues it, since unchanged files are skipped. Files that cannot be read are stored with the reason and are tried
again when they have changed.

A copy of a known file under another path gets an item of its own with the known vector. So does a file whose time of
change differs but whose content does not. A file that has become unreadable keeps its item.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lookalike.concurrency import map_ordered, prefetch
from lookalike.data.catalog import Catalog
from lookalike.data.scan import has_image
from lookalike.errors import InputError
from lookalike.gallery.item_paths import Gone, is_below
from lookalike.gallery.query import check_fingerprint
from lookalike.gallery.scan import ExistingItems, IngestBatch, new_item, prepare_batches
from lookalike.gallery.sources.base import ImageSource, Source, SourceImage
from lookalike.gallery.sources.local import no_images
from lookalike.gallery.sources.resolve import resolve_sources
from lookalike.gallery.store.base import FailedFile, GalleryItem, NewItem, Store, batches
from lookalike.hardware import cores
from lookalike.image import dhash
from lookalike.models.inference import single_threaded_workers
from lookalike.models.runtime import TorchRuntime

EMBED_BATCH = 64  # images in one pass of the network
WRITE_ITEMS = 256  # a transaction is written once it has so many items,
WRITE_SECONDS = 1.0  # or is so old
QUEUED_BATCHES = 2  # between two stages
MAX_REPORTED_FAILURES = 20  # failed files that a report lists
REMOVE_BATCH = 1000  # items removed in one transaction

if TYPE_CHECKING:
    from lookalike.gallery.ray import Cluster

Progress = Callable[[int, int], None]


class EmptiedError(InputError):
    """A folder that had images has none any more. Most likely its disk is not mounted."""


@dataclass
class IngestReport:
    """What happened to the files of the sources. `total` is the sum of the first five numbers.

    Args:
        added: new items.
        replaced: items of files that have changed; they have new ids.
        skipped: files that have not changed, or were listed twice.
        failed: files that cannot be read.
        waiting: files that may still be being written, left for the next time (only while watching).
        failed_before: of the failed files, those that had failed before and have not changed.
        reused: of the added and replaced items, those whose content was known, so that nothing was embedded.
        relabelled: of the skipped files, those that were listed with another label or metadata, which were stored.
        removed: items whose files are gone.
        passed_over: number of files that are no images by name, by extension: `{".heic": 10}`.
        notes: remarks for a person, one sentence each.
        failed_files: the first newly failed files; `Store.rejected` has all.
        seconds: duration.
    """

    added: int = 0
    replaced: int = 0
    skipped: int = 0
    failed: int = 0
    waiting: int = 0
    failed_before: int = 0
    reused: int = 0
    relabelled: int = 0
    removed: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed_files: list[FailedFile] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.added + self.replaced + self.skipped + self.failed + self.waiting


def ingest(
    store: Store,
    embedder: TorchRuntime,
    sources: Source | Iterable[Source],
    *,
    label: str | None = None,
    folder_labels: bool = True,
    sync: bool = False,
    allow_empty: bool = False,
    settle: float = 0.0,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Add images to a store.

    Args:
        store: open for writing.
        embedder: of the store's model.
        sources: one or several; see `lookalike.gallery.sources.resolve.resolve_source`. All are looked up before the
            first is read.
        label: label of all images, also of those that are in the store already.
        folder_labels: whether images in class folders get the folder's name as label: "cat" for `photos/cat/1.jpg`.
        sync: also remove items and forget failed files that are gone from the source folders.
        allow_empty: with `sync`, also if a folder is gone or has no images left.
        settle: seconds for which a file must not have changed, or else it waits for the next time.
        cluster: machines that read, decode and embed; None: this one.
        progress: called in this thread with (files done, files in all) once the files done are on the disk.

    Raises:
        InputError: a source does not exist, has no images, or is no folder with `sync`; the store cannot be written; or
            the embedder is of another model.
        EmptiedError: without `allow_empty`, a folder is gone or has lost all its images. The images of the other
            sources have been added.
    """
    start = time.monotonic()
    check_fingerprint(embedder.fingerprint, store.about, "the gallery")
    several = [sources] if isinstance(sources, str | Path | Catalog) else list(sources)
    lost: dict[str | Path, str] = {}
    for source in several if sync else ():
        if not isinstance(source, Catalog) and (path := _lost_folder(store, source)) is not None:
            lost[source] = path
    several = [source for source in several if isinstance(source, Catalog) or source not in lost]
    resolved = resolve_sources(several, folder_labels=folder_labels)
    counts = [source.count() for source in resolved] if progress is not None else []
    folders = [*_folders(resolved), *lost.values()] if sync else []
    report = IngestReport()
    too_young = _younger_than(settle) if settle > 0 else None
    unwanted = threading.Event()
    if cluster is None:
        work = embedded_batches(
            embedder, store, resolved, reuse=store, label=label, too_young=too_young, unwanted=unwanted
        )
    else:
        work = cluster.embedded_batches(embedder.model, store, resolved, label=label, too_young=too_young)
    with prefetch(work, QUEUED_BATCHES, unwanted) as finished:
        writer = _Writer(store, report)
        for batch in finished:
            writer.take(batch)
            if progress is not None:
                progress(report.total, max(sum(counts), report.total))
        writer.write()
    report.passed_over = dict(sum((source.passed_over for source in resolved), Counter()))
    report.notes = list(dict.fromkeys(note for source in resolved for note in source.notes))
    if not report.total and not sync:
        raise no_images([source.name for source in resolved], report.passed_over)
    if progress is not None:
        progress(report.total, report.total)
    if folders:
        report.removed = remove_gone(store, folders, allow_empty=allow_empty)
    report.seconds = time.monotonic() - start
    return report


def remove_gone(store: Store, folders: Sequence[str], *, allow_empty: bool = False) -> int:
    """Remove the items, and forget the failed files, of files in these folders that are gone.

    A file that cannot be examined, for lack of permission for example, is not gone. An image in a zip or Parquet file
    is gone if that file is gone or does not contain it any more.

    Args:
        store: open for writing.
        folders: absolute paths.
        allow_empty: also if a folder is gone or has no images left.

    Returns:
        Number of items removed.

    Raises:
        EmptiedError: without `allow_empty`, there is such a folder; none of its items are removed.
    """
    removed = 0
    is_gone = Gone()
    for folder in folders:
        inside = f"{folder.rstrip('/')}/"
        gone = [item.id for item in store.rows() if item.path.startswith(inside) and is_gone(item.path)]
        if gone and not allow_empty and not has_image(folder):
            what = "has no images any more" if Path(folder).is_dir() else "this folder is gone"
            raise EmptiedError(
                f"{folder}: {what}, but the gallery has {len(gone):,} of it.",
                "Is its disk mounted? To remove them: gallery add --sync --yes, or gallery remove with this folder.",
            )
        removed += sum(store.remove(some) for some in batches(gone, REMOVE_BATCH))
        store.forget([one.path for one in store.rejected() if one.path.startswith(inside) and is_gone(one.path)])
    return removed


def embedded_batches(
    embedder: TorchRuntime,
    known: ExistingItems,
    sources: Iterable[ImageSource],
    *,
    reuse: Store | None = None,
    label: str | None = None,
    too_young: Callable[[SourceImage], bool] | None = None,
    unwanted: threading.Event | None = None,
) -> Generator[IngestBatch]:
    """List, read, decode and embed on this machine; yields batches whose images are finished items.

    For the arguments see `lookalike.gallery.scan.prepare_batches`.
    """
    decoded = prepare_batches(
        known,
        sources,
        embedder.size,
        crop_mode=embedder.crop_mode,
        reuse=reuse,
        label=label,
        too_young=too_young,
        unwanted=unwanted,
    )
    count = cores() if embedder.device.type == "cpu" else 1

    def embed(batch: IngestBatch) -> IngestBatch:
        batch.reused = len(batch.items)
        for images in batches(batch.decoded, EMBED_BATCH):
            pixels: NDArray[np.uint8] = np.stack([one.pixels for one in images])  # (n, size, size, 3)
            vectors, hashes = embedder.embed(pixels), dhash(pixels)
            for one, vector, hash in zip(images, vectors, hashes.tolist(), strict=True):
                before = batch.before.get(one.source.path)
                batch.items.append(new_item(one.source, one.digest, vector, one.thumbnail, hash, before, label))
        batch.decoded = []
        return batch

    with prefetch(decoded, QUEUED_BATCHES) as some, single_threaded_workers(count) as threads:
        yield from map_ordered(threads, embed, some, count + 1)


class _Writer:
    """The last stage: collects items and writes them together."""

    def __init__(self, store: Store, report: IngestReport) -> None:
        self._store = store
        self._report = report
        self._items: list[NewItem] = []
        self._before: dict[str, GalleryItem] = {}
        self._reused = 0
        self._since = time.monotonic()

    def take(self, batch: IngestBatch) -> None:
        """Take over a finished batch; it is written now or later."""
        report = self._report
        self._items += batch.items
        self._before.update({item.path: batch.before[item.path] for item in batch.items if item.path in batch.before})
        self._reused += batch.reused
        if batch.failed:
            self._store.reject(batch.failed)
            report.failed_files += batch.failed[: MAX_REPORTED_FAILURES - len(report.failed_files)]
        if batch.recovered:
            self._store.forget(batch.recovered)
        report.relabelled += self._relabel(batch)
        report.failed += len(batch.failed) + batch.failed_before
        report.failed_before += batch.failed_before
        report.skipped += batch.skipped
        report.waiting += batch.waiting
        if len(self._items) >= WRITE_ITEMS or time.monotonic() - self._since >= WRITE_SECONDS:
            self.write()

    def _relabel(self, batch: IngestBatch) -> int:
        ids_by_change = defaultdict(list)
        for id, label, metadata in batch.relabelled:
            ids_by_change[label, None if metadata is None else tuple(metadata.items())].append(id)
        return sum(
            self._store.update(ids, label, None if pairs is None else dict(pairs))
            for (label, pairs), ids in ids_by_change.items()
        )

    def write(self) -> None:
        """Write what was collected; it is on the disk when this returns."""
        if self._items:
            self._store.add(self._items)
        replaced = len(self._before)
        self._report.replaced += replaced
        self._report.added += len(self._items) - replaced
        self._report.reused += self._reused
        self._items, self._before, self._reused, self._since = [], {}, 0, time.monotonic()


def _folders(sources: Iterable[ImageSource]) -> list[str]:
    folders = []
    for source in sources:
        if source.folder is None:
            raise InputError(f"{source.name}: not a folder of images.", "Only folders can be kept in sync.")
        folders.append(source.folder)
    return folders


def _lost_folder(store: Store, source: str | Path) -> str | None:
    """The absolute path of a source that does not exist, if the gallery has items below it."""
    if "://" in str(source) or "\0" in str(source):
        return None
    path = os.path.abspath(Path(source).expanduser())  # noqa: PTH100
    gone = not os.path.lexists(path) and any(is_below(item.path, path) for item in store.rows())
    return path if gone else None


def _younger_than(seconds: float) -> Callable[[SourceImage], bool]:
    """Whether a file changed within the last `seconds`. A time of change in the future does not count."""
    return lambda image: 0 <= time.time() - image.modified / 1e9 < seconds
