"""Embed images into a folder of Parquet files, on this machine or on a cluster; a gallery can be made of it later.

Each file has the format of `lookalike.gallery.export` and is complete or absent. Its name is derived from its content,
so that work that is done twice leaves one file, and begins with the number of the run, so that items of changed images
come after those that they replace. Images that are in the folder already are skipped. Files that cannot be read are
listed in `_failed.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.concurrency import prefetch
from lookalike.errors import InputError
from lookalike.files import atomic_file, atomic_write
from lookalike.gallery.export import Exported, batch_of, schema_of
from lookalike.gallery.ingest import QUEUED_BATCHES, embedded_batches
from lookalike.gallery.query import check_fingerprint
from lookalike.gallery.ray import Cluster, items_of, portions
from lookalike.gallery.sources.base import ImageSource, Source
from lookalike.gallery.sources.resolve import resolve_sources
from lookalike.gallery.store.base import FailedFile, GalleryInfo, GalleryItem, NewItem
from lookalike.models.runtime import TorchRuntime

if TYPE_CHECKING:
    from lookalike.models.pretrained import ImageModel

FAILED_FILES = "_failed.jsonl"  # readers of the folder as one data set skip names that begin with "_"
SHARD = re.compile(r"part-(\d{6,})-[0-9a-f]+\.parquet")
SHARD_ITEMS = 1024  # in a file that this machine writes


@dataclass
class ShardReport:
    """What happened to the images of the sources.

    Args:
        added: images embedded now.
        skipped: images that were in the folder already.
        failed: files that cannot be read.
        files: Parquet files written.
        passed_over: number of files that are no images by name, by extension.
        notes: remarks for a person, one sentence each.
    """

    added: int = 0
    skipped: int = 0
    failed: int = 0
    files: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.added + self.skipped + self.failed


@dataclass(frozen=True)
class _Step:
    """One step of the work: numbers to add to the report, and new failed files."""

    added: int = 0
    skipped: int = 0
    failed_before: int = 0
    failed: Sequence[FailedFile] = ()


def write_shards(
    model: ImageModel,
    sources: Sequence[Source],
    folder: Path,
    *,
    location: str = "",
    label: str | None = None,
    folder_labels: bool = True,
    cluster: Cluster | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShardReport:
    """Embed images and write them as Parquet files, which `Gallery.create_from` reads.

    Args:
        model: makes the vectors.
        sources: files, folders and URIs; see `lookalike.gallery.sources.resolve.resolve_source`.
        folder: of the Parquet files; created if it does not exist. If it has files of the same model, the work goes on.
        location: of the model, stored in the files.
        label: label of all images.
        folder_labels: whether the names of class folders become labels.
        cluster: machines that embed, which must all see the folder; None: this one.
        progress: called with (images done, images in all).

    Raises:
        InputError: a source does not exist, or the folder has files of another model or cannot be written.
    """
    config = model.config
    about = GalleryInfo(
        model.fingerprint, model.embedding_dim, location, config.image_size, config.match_threshold, config.dataset
    )
    resolved = resolve_sources(sources, folder_labels=folder_labels)
    total = sum(source.count() for source in resolved)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror}).", "Choose another folder.") from None
    known = ExistingShards(folder, about)
    writer = ShardWriter(str(folder.absolute()), known.last_run + 1, about, label)
    failed = {one.path: one for one in known.rejected()}
    report = ShardReport()
    steps = (
        _embed_here(model, known, resolved, writer, label)
        if cluster is None
        else _embed_on_cluster(cluster, model, known, resolved, writer, label)
    )
    for step in steps:
        report.added += step.added
        report.files += step.added > 0
        report.skipped += step.skipped
        report.failed += step.failed_before + len(step.failed)
        failed.update({one.path: one for one in step.failed})
        if progress is not None:
            progress(report.total, max(total, report.total))
    lines = (json.dumps(asdict(failed[path]), ensure_ascii=False) for path in sorted(failed))
    atomic_write(folder / FAILED_FILES, "".join(f"{line}\n" for line in lines))
    report.passed_over = dict(sum((source.passed_over for source in resolved), Counter()))
    report.notes = list(dict.fromkeys(note for source in resolved for note in source.notes))
    return report


def _embed_here(
    model: ImageModel, known: ExistingShards, sources: list[ImageSource], writer: ShardWriter, label: str | None
) -> Iterator[_Step]:
    items: list[NewItem] = []
    with prefetch(embedded_batches(TorchRuntime(model), known, sources, label=label), QUEUED_BATCHES) as batches:
        for batch in batches:
            items += batch.items
            yield _Step(skipped=batch.skipped, failed_before=batch.failed_before, failed=batch.failed)
            while len(items) >= SHARD_ITEMS:
                writer.write(items[:SHARD_ITEMS])
                del items[:SHARD_ITEMS]
                yield _Step(added=SHARD_ITEMS)
    if items:
        writer.write(items)
        yield _Step(added=len(items))


def _embed_on_cluster(
    cluster: Cluster,
    model: ImageModel,
    known: ExistingShards,
    sources: list[ImageSource],
    writer: ShardWriter,
    label: str | None,
) -> Iterator[_Step]:
    for batch, images, _ in portions(known, sources, label=label):
        yield _Step(skipped=batch.skipped, failed_before=batch.failed_before, failed=batch.failed)
        for table in cluster.tables(model, images, (ShardWriter, writer.arguments)) if images else ():
            for row in table.to_pylist():
                yield _Step(added=row["items"], failed=[FailedFile(**one) for one in json.loads(row["failed"])])


class ShardWriter:
    """Writes items as Parquet files; also the last stage on a cluster, where it takes and returns tables.

    Args:
        folder: of the files.
        run: number of this run.
        about: of the gallery.
        label: label of all images.
    """

    def __init__(self, folder: str, run: int, about: GalleryInfo, label: str | None) -> None:
        self.arguments = (folder, run, about, label)
        self._folder, self._run, self._about, self._label = Path(folder), run, about, label

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write a table of `lookalike.gallery.ray.FINISHED`. Returns one row: number of items, failed files as JSON."""
        items, failed = items_of(table, label=self._label)
        if items:
            self.write(items)
        return pa.table({"items": [len(items)], "failed": [json.dumps([asdict(one) for one in failed])]})

    def write(self, items: Sequence[NewItem]) -> None:
        """Write items as one file."""
        schema = schema_of(self._about)
        numbered = [
            GalleryItem(id, item.path, item.digest, item.size, item.modified, item.label, item.metadata, item.dhash)
            for id, item in enumerate(items, 1)
        ]
        vectors = np.stack([item.vector for item in items])
        batch = batch_of(schema, numbered, vectors, [item.thumbnail for item in items])
        content = "\0".join(f"{item.path}\0{item.size}\0{item.modified}" for item in items)
        name = f"part-{self._run:06d}-{hashlib.sha256(content.encode()).hexdigest()[:24]}.parquet"
        with (
            atomic_file(self._folder / name, shared=True) as partial,
            pq.ParquetWriter(partial, schema, compression="zstd") as file,
        ):
            file.write_batch(batch)


class ExistingShards:
    """The items that are in a folder of shards; see `lookalike.gallery.scan.ExistingItems`.

    Args:
        folder: of the files.
        about: what the items must have been made with.

    Raises:
        InputError: another model made them, or a file is damaged.
    """

    def __init__(self, folder: Path, about: GalleryInfo) -> None:
        self._folder = folder
        self._items: dict[str, GalleryItem] = {}
        self.last_run = 0
        if not any(folder.glob("*.parquet")):
            return
        existing = Exported(folder)
        check_fingerprint(about.fingerprint, existing.about, str(folder))
        names = ["id", "path", "size", "modified", "label", "metadata"]
        for part in existing.parts:
            if match := SHARD.fullmatch(part.name):  # a person may have added other files
                self.last_run = max(self.last_run, int(match[1]))
            for row in pq.read_table(part, columns=names).to_pylist():
                metadata: dict[str, Any] = json.loads(row["metadata"])
                item = GalleryItem(row["id"], row["path"], b"", row["size"], row["modified"], row["label"], metadata, 0)
                self._items[item.path] = item  # of the latest run, if there are several

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """The items at these paths."""
        return {path: self._items[path] for path in paths if path in self._items}

    def rejected(self) -> list[FailedFile]:
        """The files that could not be read."""
        path = self._folder / FAILED_FILES
        if not path.exists():
            return []
        return [FailedFile(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
