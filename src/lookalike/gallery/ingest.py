"""Pictures into a gallery: listed, read, decoded, embedded and written, each stage while the others work.

    listing ▸ reading ▸ decoding (a thread per core) ─▶ vectors (a thread per core) ─▶ writing (the caller's thread)

Between the stages wait two batches at most. With a cluster, all but the writing is done on its machines; see
`lookalike.gallery.ray`. What is reported as done is durable, so the work can be stopped at any moment, kill -9
included:
the same call goes on where it was, since what is there is skipped. Files that cannot be read are remembered with the
reason, and tried again when they have changed.

The same content under another path, moved or copied, gets a row of its own with the vector that is there; a file whose
content is as it was but whose time of change is not gets its row anew, likewise. What has become unreadable keeps the
row that it had.
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
from lookalike.gallery.query import check_fingerprint
from lookalike.gallery.row_paths import Gone, is_below
from lookalike.gallery.scan import IngestBatch, new_row, prepare_batches
from lookalike.gallery.sources.base import ImageSource, Source, SourceImage
from lookalike.gallery.sources.local import no_pictures
from lookalike.gallery.sources.resolve import listings_of
from lookalike.gallery.store.base import FailedFile, GalleryItem, NewItem, Store, batches
from lookalike.hardware import cores
from lookalike.image import dhash
from lookalike.models.inference import single_threaded_workers
from lookalike.models.runtime import TorchRuntime

TOGETHER = 64  # pictures through the network at once
WRITTEN = 256  # rows of one transaction, or
EVERY = 1.0  # those of so many seconds
AHEAD = 2  # batches between two stages
SHOWN = 20  # rejected files that a report holds in full
REMOVED = 1000  # rows removed at a time

if TYPE_CHECKING:
    from lookalike.gallery.ray import Cluster

Progress = Callable[[int, int], None]


class EmptiedError(InputError):
    """A folder that had pictures has none all at once: most likely its disk is not there."""


@dataclass
class IngestReport:
    """What became of the files that were listed: `total` is the sum of the first five.

    Args:
        added: new rows.
        replaced: rows of files that had changed; they have new ids.
        skipped: files that were there as they are, or were listed twice.
        rejected: files that cannot be read. Of these:
        known: were rejected before and have not changed.
        waiting: files left for the next time because they may still be being written (only while watching).
        reused: of the added and replaced rows, those that needed no embedding, as their content was there.
        relabelled: of the skipped ones, those that were listed with another label or metadata, which they have now.
        removed: rows whose files are gone.
        passed_over: how many files of each kind were left alone, as they are no images by name: `{".heic": 10}`.
        notes: what else a person should know, a sentence each.
        faults: the first of the newly rejected files; `Store.rejected` has all.
        seconds: from beginning to end.
    """

    added: int = 0
    replaced: int = 0
    skipped: int = 0
    rejected: int = 0
    waiting: int = 0
    known: int = 0
    reused: int = 0
    relabelled: int = 0
    removed: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[FailedFile] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.added + self.replaced + self.skipped + self.rejected + self.waiting


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
    """Add pictures to a store.

    Args:
        store: open for writing.
        embedder: of the store's model.
        sources: one or several; see `lookalike.gallery.sources.resolve.resolve_source`. All are looked for before the
            first is read.
        label: what all of them are; rows that are there already get it, too.
        folder_labels: whether pictures in class folders, `photos/cat/1.jpg` of `photos`, are labelled by them.
        sync: also remove the rows, and forget the rejected files, of files that are gone from the source folders.
        allow_empty: with `sync`, also of folders that are gone themselves, or have no pictures left.
        settle: seconds for which a file must not have changed, else it waits for the next time.
        cluster: the machines that read, decode and embed; None: this one.
        progress: called in this thread with (files done, files in all); what is done is durable.

    Returns:
        The report.

    Raises:
        InputError: a source that is not there or holds no pictures, a store that cannot be written, another model's
            embedder; with `sync` a source that is no folder.
        EmptiedError: without `allow_empty`, a folder that is gone or has lost all its images; the images of other
            sources have been added.
    """
    start = time.monotonic()
    check_fingerprint(embedder.fingerprint, store.about, "the gallery")
    several = [sources] if isinstance(sources, str | Path | Catalog) else list(sources)
    lost: dict[str | Path, str] = {}
    for source in several if sync else ():
        if not isinstance(source, Catalog) and (path := _lost(store, source)) is not None:
            lost[source] = path
    several = [source for source in several if isinstance(source, Catalog) or source not in lost]
    listings = listings_of(several, folder_labels=folder_labels)
    counts = [listing.count() for listing in listings] if progress is not None else []
    folders = [*_folders(listings), *lost.values()] if sync else []
    report = IngestReport()
    too_young = _younger_than(settle) if settle > 0 else None
    unwanted = threading.Event()
    if cluster is None:
        size, mode = embedder.size, embedder.crop_mode
        pictures = prepare_batches(
            store, listings, size, crop_mode=mode, label=label, too_young=too_young, unwanted=unwanted
        )
        work = _embedded(embedder, pictures, label)
    else:
        work = cluster.embedded(embedder.model, store, listings, label=label, too_young=too_young)
    with prefetch(work, AHEAD, unwanted) as finished:
        writer = _Writer(store, report)
        for batch in finished:
            writer.take(batch)
            if progress is not None:
                progress(report.total, max(sum(counts), report.total))
        writer.write()
    report.passed_over = dict(sum((listing.passed_over for listing in listings), Counter()))
    report.notes = list(dict.fromkeys(note for listing in listings for note in listing.notes))
    if not report.total and not sync:
        raise no_pictures([listing.name for listing in listings], report.passed_over)
    if progress is not None:
        progress(report.total, report.total)
    if folders:
        report.removed = remove_gone(store, folders, allow_empty=allow_empty)
    report.seconds = time.monotonic() - start
    return report


def remove_gone(store: Store, folders: Sequence[str], *, allow_empty: bool = False) -> int:
    """Remove the rows, and forget the rejected files, of files in these folders (absolute paths) that are gone.

    A file that cannot be looked at, because its folder may not be entered, say, is not gone. Nor is a picture inside a
    zip or a Parquet file, unless that file is gone or holds it no more.

    Args:
        store: open for writing.
        folders: absolute paths.
        allow_empty: also of folders that are gone or have no pictures left at all.

    Returns:
        Rows removed.

    Raises:
        EmptiedError: there is such a folder, and `allow_empty` is not given; of it nothing is removed.
    """
    removed = 0
    is_gone = Gone()
    for folder in folders:
        inside = f"{folder.rstrip('/')}/"
        gone = [row.id for row in store.rows() if row.path.startswith(inside) and is_gone(row.path)]
        if gone and not allow_empty and not has_image(folder):
            what = "no pictures here any more" if Path(folder).is_dir() else "this folder is gone"
            raise EmptiedError(
                f"{folder}: {what}, but the gallery has {len(gone):,} of it.",
                "Is its disk there? If they are to go: gallery add --sync --yes, or gallery remove with this folder.",
            )
        removed += sum(store.remove(some) for some in batches(gone, REMOVED))
        store.forget([one.path for one in store.rejected() if one.path.startswith(inside) and is_gone(one.path)])
    return removed


class _Writer:
    """The last stage: rows are collected and written together."""

    def __init__(self, store: Store, report: IngestReport) -> None:
        self._store = store
        self._report = report
        self._rows: list[NewItem] = []
        self._before: dict[str, GalleryItem] = {}
        self._reused = 0
        self._since = time.monotonic()

    def take(self, batch: IngestBatch) -> None:
        """Keep a batch whose pictures are all rows by now; sooner or later it is written."""
        report = self._report
        self._rows += batch.rows
        self._before.update({row.path: batch.before[row.path] for row in batch.rows if row.path in batch.before})
        self._reused += batch.known_content
        if batch.rejected:
            self._store.reject(batch.rejected)
            report.faults += batch.rejected[: SHOWN - len(report.faults)]
        if batch.forgiven:
            self._store.forget(batch.forgiven)
        report.relabelled += self._relabel(batch)
        report.rejected += len(batch.rejected) + batch.known
        report.known += batch.known
        report.skipped += batch.skipped
        report.waiting += batch.young
        if len(self._rows) >= WRITTEN or time.monotonic() - self._since >= EVERY:
            self.write()

    def _relabel(self, batch: IngestBatch) -> int:
        alike = defaultdict(list)
        for id, label, metadata in batch.relabelled:
            alike[label, None if metadata is None else tuple(metadata.items())].append(id)
        return sum(
            self._store.update(ids, label, None if pairs is None else dict(pairs))
            for (label, pairs), ids in alike.items()
        )

    def write(self) -> None:
        """Write what was collected; when this returns, it is durable."""
        if self._rows:
            self._store.add(self._rows)
        replaced = len(self._before)
        self._report.replaced += replaced
        self._report.added += len(self._rows) - replaced
        self._report.reused += self._reused
        self._rows, self._before, self._reused, self._since = [], {}, 0, time.monotonic()


def _embedded(embedder: TorchRuntime, work: Generator[IngestBatch], label: str | None) -> Generator[IngestBatch]:
    """The second stage: the pictures of each batch become rows."""
    count = cores() if embedder.device.type == "cpu" else 1

    def finished(batch: IngestBatch) -> IngestBatch:
        batch.known_content = len(batch.rows)
        for pictures in batches(batch.decoded, TOGETHER):
            pixels: NDArray[np.uint8] = np.stack([one.pixels for one in pictures])  # (n, size, size, 3)
            vectors, looks = embedder.embed(pixels), dhash(pixels)
            for one, vector, look in zip(pictures, vectors, looks.tolist(), strict=True):
                before = batch.before.get(one.item.path)
                batch.rows.append(new_row(one.item, one.digest, vector, one.thumbnail, look, before, label))
        batch.decoded = []
        return batch

    with prefetch(work, AHEAD) as some, single_threaded_workers(count) as threads:
        yield from map_ordered(threads, finished, some, count + 1)


def _folders(listings: Iterable[ImageSource]) -> list[str]:
    folders = []
    for listing in listings:
        if listing.folder is None:
            raise InputError(f"{listing.name}: not a folder of pictures.", "Only folders can be kept in step.")
        folders.append(listing.folder)
    return folders


def _lost(store: Store, source: str | Path) -> str | None:
    """The absolute path of a source that is the path of a folder that is gone and that the gallery has pictures of."""
    if "://" in str(source) or "\0" in str(source):
        return None
    path = os.path.abspath(Path(source).expanduser())  # noqa: PTH100
    gone = not os.path.lexists(path) and any(is_below(row.path, path) for row in store.rows())
    return path if gone else None


def _younger_than(seconds: float) -> Callable[[SourceImage], bool]:
    """Whether a file changed within the last so many seconds; one from the future, by its clock, did not."""
    return lambda item: 0 <= time.time() - item.modified / 1e9 < seconds
