"""A gallery's rows as a folder of Parquet files, written by many machines; a store is filled from it later.

Each file is what `lookalike.gallery.export` writes, complete or absent. Its name comes from what is in it, so that a
piece of work that is done twice leaves one file; before that stands the number of the turn, so that rows of changed
pictures come after those that they replace. What is in the folder is not done again. Files that could not become rows
are listed in `rejected.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import InputError
from lookalike.files import atomic_file, atomic_write
from lookalike.gallery.export import Exported, batch_of, schema_of
from lookalike.gallery.query import check_fingerprint
from lookalike.gallery.ray import Cluster, portions, rows_of
from lookalike.gallery.sources.base import Source
from lookalike.gallery.sources.resolve import listings_of
from lookalike.gallery.store.base import FailedFile, GalleryInfo, GalleryItem, NewItem

if TYPE_CHECKING:
    from collections.abc import Callable

    from lookalike.models.pretrained import ImageModel

REJECTED = "rejected.jsonl"
PART = re.compile(r"part-(\d{6,})-[0-9a-f]+\.parquet")


@dataclass
class Shards:
    """What became of the pictures: rows written now, those that were there, and files that cannot be read; how many
    files of each kind were left alone, as they are no images by name; and what else a person should know.
    """

    added: int = 0
    skipped: int = 0
    rejected: int = 0
    files: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_shards(
    cluster: Cluster,
    model: ImageModel,
    sources: Sequence[Source],
    folder: Path,
    *,
    where: str = "",
    label: str | None = None,
    folder_labels: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Shards:
    """Embed pictures on a cluster and keep the rows as Parquet files, which `Gallery.create_from` reads.

    Args:
        cluster: that does it; each machine writes its files, so all must see the folder.
        model: makes the vectors.
        sources: files, folders and URIs; see `lookalike.gallery.sources.resolve.resolve_source`.
        folder: of the files; made when missing. With files of the same model in it the work goes on.
        where: the model's place, to be remembered.
        label: what all of them are.
        folder_labels: whether pictures of class folders are labelled by them.
        progress: called with (pictures done, pictures in all).

    Returns:
        What became of them.

    Raises:
        InputError: a source that is not there, a folder with rows of another model, or one that cannot be written.
    """
    config = model.config
    about = GalleryInfo(
        model.fingerprint, model.embedding_dim, where, config.image_size, config.match_threshold, config.dataset
    )
    listings = listings_of(sources, folder_labels=folder_labels)
    total = sum(listing.count() for listing in listings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}).", "Choose another folder.") from None
    known = Written(folder, about)
    done = Shards()
    rejected = {one.path: one for one in known.rejected()}
    last = (ShardWriter, (str(folder.absolute()), known.turn + 1, about, label))
    for batch, items, _ in portions(known, listings, label=label):
        done.skipped += batch.skipped
        done.rejected += len(batch.rejected) + batch.known
        rejected.update({one.path: one for one in batch.rejected})
        for table in cluster.tables(model, items, last) if items else ():
            for one in table.to_pylist():
                done.added += one["rows"]
                done.files += one["rows"] > 0
                found = [FailedFile(**each) for each in json.loads(one["rejected"])]
                done.rejected += len(found)
                rejected.update({each.path: each for each in found})
            if progress is not None:
                progress(done.added + done.skipped + done.rejected, total)
    _write_rejected(folder, list(rejected.values()))
    done.passed_over = dict(sum((listing.passed_over for listing in listings), Counter()))
    done.notes = [note for listing in listings for note in listing.notes]
    return done


class ShardWriter:
    """An actor that writes finished rows as a Parquet file, and says how many."""

    def __init__(self, folder: str, turn: int, about: GalleryInfo, label: str | None) -> None:
        self._folder, self._turn, self._about, self._label = Path(folder), turn, about, label

    def __call__(self, table: pa.Table) -> pa.Table:
        """Table of `lookalike.gallery.ray.FINISHED` to one row: rows written, and JSON of the rejected files."""
        rows, rejected = rows_of(table, label=self._label)
        if rows:
            self._write(rows)
        said = json.dumps([asdict(one) for one in rejected])
        return pa.table({"rows": [len(rows)], "rejected": [said]})

    def _write(self, rows: list[NewItem]) -> None:
        schema = schema_of(self._about)
        numbered = [
            GalleryItem(number, row.path, row.digest, row.size, row.modified, row.label, row.metadata, row.dhash)
            for number, row in enumerate(rows, 1)
        ]
        vectors = np.stack([row.vector for row in rows])
        whole = batch_of(schema, numbered, vectors, [row.thumbnail for row in rows])
        said = "\0".join(f"{row.path}\0{row.size}\0{row.modified}" for row in rows)
        mark = hashlib.sha256(said.encode()).hexdigest()[:24]
        path = self._folder / f"part-{self._turn:06d}-{mark}.parquet"
        with (
            atomic_file(path, shared=True) as beside,
            pq.ParquetWriter(beside, schema, compression="zstd") as writer,
        ):
            writer.write_batch(whole)


class Written:
    """What is in the folder already; see `lookalike.gallery.scan.ExistingItems`.

    Args:
        folder: of the files.
        about: what its rows must have been made with.

    Raises:
        InputError: they were not, or a file in it is damaged.
    """

    def __init__(self, folder: Path, about: GalleryInfo) -> None:
        self._folder = folder
        self._rows: dict[str, GalleryItem] = {}
        self.turn = 0  # of the last work that wrote here
        if not any(folder.glob("*.parquet")):
            return
        there = Exported(folder)
        check_fingerprint(about.fingerprint, there.about, str(folder))
        names = ["id", "path", "size", "modified", "label", "metadata"]
        for part in there.parts:
            if named := PART.fullmatch(part.name):  # a person may have put others beside them
                self.turn = max(self.turn, int(named[1]))
            for one in pq.read_table(part, columns=names).to_pylist():
                metadata: dict[str, Any] = json.loads(one["metadata"])
                row = GalleryItem(one["id"], one["path"], b"", one["size"], one["modified"], one["label"], metadata, 0)
                self._rows[row.path] = row  # of a later turn, if there are several

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """See `Known.by_path`."""
        return {path: self._rows[path] for path in paths if path in self._rows}

    def rejected(self) -> list[FailedFile]:
        """See `Known.rejected`."""
        path = self._folder / REJECTED
        if not path.exists():
            return []
        return [FailedFile(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_rejected(folder: Path, rejected: Sequence[FailedFile]) -> None:
    lines = (json.dumps(asdict(one), ensure_ascii=False) for one in sorted(rejected, key=lambda one: one.path))
    atomic_write(folder / REJECTED, "".join(f"{line}\n" for line in lines))
