"""A gallery: pictures that are kept with the vectors of one model, and found again by what they look like.

from lookalike import Gallery

with Gallery.create("photos.gallery", "runs/r18/model") as gallery:
    gallery.add("photos/")
    for hit in gallery.search("photo.jpg").hits:
        print(hit.score, hit.row.path)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.query import (
    Query,
    SearchOptions,
    Threshold,
    answers,
    are_several,
    check_fingerprint,
    check_model,
    checked_embedder,
    limit_of,
    load_model,
    remembered_embedder,
)
from lookalike.gallery.row_paths import forget_rejected, rows_at
from lookalike.gallery.store import location
from lookalike.gallery.store.base import Filter, GalleryInfo, Problem, SearchResult, Store, Value, batches
from lookalike.gallery.store.location import PostgresLocation

if TYPE_CHECKING:
    from PIL.Image import Image

    from lookalike.gallery.calibration import Calibrated
    from lookalike.gallery.duplicates import Group
    from lookalike.gallery.export import Precision, Progress
    from lookalike.gallery.ingest import IngestReport
    from lookalike.gallery.ray import Cluster
    from lookalike.gallery.sources.base import Source
    from lookalike.models.inference import Embedder
    from lookalike.models.pretrained import ImageModel

BATCH = 4096  # rows changed at a time


@dataclass(frozen=True)
class Verified:
    """What `verify` found: nothing wrong where `faults` is empty; recall@10 of the approximate search, if measured."""

    faults: list[Problem]
    recall: float | None = None


class Gallery:
    """Pictures, found by what they look like. Made by `create`, `create_from` and `open`; a context manager.

    Args:
        store: the rows.
        place: where they are.
        model: that made the vectors, its folder or Hub id; None: the one the gallery remembers, once it is needed.
    """

    def __init__(
        self, store: Store, place: Path | PostgresLocation, model: ImageModel | str | Path | None = None
    ) -> None:
        self.store = store
        self.place = place
        self._embedder = None if model is None else checked_embedder(model, store.about, str(place))

    @classmethod
    def create(cls, target: str | Path, model: ImageModel | str | Path = "default") -> Gallery:
        """A new, empty gallery, open for writing.

        Args:
            target: a folder that is not there yet; or `postgresql://USER@HOST/DATABASE#NAME`.
            model: makes the vectors; "default": the one in the package. Of a folder or Hub id the place is remembered,
                and need not be given again.

        Raises:
            InputError: there is something already, none can be made there, or no such model.
        """
        place = location.parse_location(target)
        loaded, where = load_model(model)
        about = GalleryInfo(
            loaded.fingerprint,
            loaded.embedding_dim,
            where,
            loaded.config.image_size,
            loaded.config.match_threshold,
            loaded.config.dataset,
        )
        return cls(location.create_store(place, about), place, loaded)

    @classmethod
    def create_from(
        cls,
        target: str | Path,
        exported: str | Path,
        model: ImageModel | str | Path | None = None,
        *,
        progress: Progress | None = None,
    ) -> Gallery:
        """A new gallery with all that `export` wrote, open for writing. Ids are given anew, in the same order.

        A folder is complete or absent. For a database the file is read through before the first row is sent; if the
        connection breaks later, what has arrived stays.

        Args:
            target: as for `create`.
            exported: the file.
            model: only checked: the gallery wants the model that the file names.
            progress: called with (rows done, rows in all).

        Raises:
            InputError: as `create`, or a file that is no export or is damaged.
        """
        from lookalike.gallery.export import Exported, create_filled

        source = Exported(Path(exported))
        if model is not None:
            check_model(load_model(model)[0], source.about, str(exported))
        create_filled(location.parse_location(target), source, progress)
        return cls.open(target, model, write=True)

    @classmethod
    def open(cls, target: str | Path, model: ImageModel | str | Path | None = None, write: bool = False) -> Gallery:
        """A gallery that is there.

        Args:
            target: as for `create`.
            model: None: the one it remembers, loaded when a picture is to be understood.
            write: to add, remove, label or compact; one at a time, where the gallery is a folder.

        Raises:
            InputError: none there, damaged, written to by another process, or made by another model.
        """
        place = location.parse_location(target)
        store = location.open_store(place, write=write)
        try:
            return cls(store, place, model)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the store; leaving a `with` block does, too."""
        self.store.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.store)

    @property
    def about(self) -> GalleryInfo:
        """What it was made with: the model's fingerprint and place, the dimension; and the thresholds."""
        return self.store.about

    @property
    def embedder(self) -> Embedder:
        """What turns pictures into vectors: the model that was given, else the one that the gallery remembers.

        Raises:
            InputError: none is remembered, it is gone, or it is another one now.
        """
        if self._embedder is None:
            self._embedder = remembered_embedder(self.about, str(self.place))
        return self._embedder

    def add(
        self,
        *sources: Source,
        label: str | None = None,
        folder_labels: bool = True,
        sync: bool = False,
        emptied: bool = False,
        cluster: Cluster | None = None,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Add pictures: files, folders, patterns, tables, data sets; what is there is skipped.

        Args:
            sources: see `lookalike.gallery.sources.resolve.resolve_source`.
            label: what all of them are.
            folder_labels: whether pictures of class folders are labelled by them.
            sync: also remove the rows of files that are gone from the source folders.
            emptied: with `sync`, also those of source folders that are gone or have no pictures left.
            cluster: the machines that read, decode and embed; None: this one.
            progress: called with (files done, files in all); what is done is durable.

        Raises:
            InputError: as `lookalike.gallery.ingest.ingest`.
        """
        from lookalike.gallery.ingest import ingest

        return ingest(
            self.store,
            self.embedder,
            sources,
            label=label,
            folder_labels=folder_labels,
            sync=sync,
            emptied=emptied,
            cluster=cluster,
            progress=progress,
        )

    def watch(self, *folders: str | Path, **how: Any) -> None:
        """Keep in step with folders until told to stop; see `lookalike.gallery.watch.watch` for options."""
        from lookalike.gallery.watch import watch

        watch(self.store, self.embedder, folders, **how)

    @overload
    def search(  # noqa: D418
        self, query: str | Path | bytes | Image | int, k: int = ..., **how: Unpack[SearchOptions]
    ) -> SearchResult:
        """One query."""

    @overload
    def search(  # noqa: D418
        self, query: list[Any] | tuple[Any, ...], k: int = ..., **how: Unpack[SearchOptions]
    ) -> list[SearchResult]:
        """Several."""

    @overload
    def search(self, query: NDArray[Any], k: int = ..., **how: Unpack[SearchOptions]) -> Any:  # noqa: D418
        """One vector or picture, or several: by the array's shape."""

    def search(
        self,
        query: Query | Sequence[Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        threshold: Threshold = "default",
        exact: bool = False,
        fingerprint: str | None = None,
        digest: bytes | None = None,
    ) -> SearchResult | list[SearchResult]:
        """The rows most alike to a picture, a row or a vector.

        Args:
            query: a picture (path, bytes of a file, Pillow image, (H, W, 3) uint8), the id of a row, or a vector (D,)
                of floating numbers; or several: a list of any of these, (Q, D) vectors, (N, H, W, 3) pictures. A row
                is not its own answer, whether it is named by its id or by its path, and other rows of the same file,
                byte for byte, are in `Found.same` and not among the answers.
            k: answers at most.
            where: only rows of this label and metadata: `{"label": ["cat", "dog"], "year": 2012}`.
            threshold: the least cosine of an answer; "calibrated": that of `calibrate`; "default": likewise where the
                gallery was calibrated, else none; None: none.
            exact: compare with all rows.
            fingerprint: of the model that made the vectors given, where it is known.
            digest: SHA-256 (32 bytes) of the file that the one vector given is of, where it is known; for `Found.same`.

        Returns:
            What was found and whether all rows were compared; of several queries, a list of it.

        Raises:
            InputError: a query that cannot be read or is of another model, an id that is not there, no calibrated
                threshold where it was asked for, or k below 1.
        """
        if fingerprint is not None:
            check_fingerprint(fingerprint, self.about, str(self.place))
        several = are_several(query)
        queries: list[Query] = list(query) if several else [query]  # type: ignore[arg-type, list-item]
        limit = self.threshold(threshold)
        found = answers(
            self.store, lambda: self.embedder, queries, k, where=where, threshold=limit, exact=exact, digest=digest
        )
        return found if several else found[0]

    def threshold(self, threshold: Threshold = "default") -> float | None:
        """The least cosine that `search` asks of an answer; None where there is none.

        Raises:
            InputError: "calibrated" where the gallery was not calibrated, or what is no cosine.
        """
        return limit_of(threshold, self.about, str(self.place))

    def remove(self, ids: Iterable[int] = (), *, paths: Iterable[str | Path] = (), where: Filter | None = None) -> int:
        """Remove rows: those of these ids, of these paths, and those that a filter lets through; how many there were.

        A path is as the row has it, or as the file is called from here; that of a folder, zip or Parquet file stands
        for all rows below it, whether or not it is still there. Files there that were rejected are forgotten.

        Raises:
            InputError: an empty filter (it would let everything through), or a store not open for writing.
        """
        wanted_ids = [*ids]
        if named := [str(path) for path in paths]:
            wanted_ids += [id for found in rows_at(self.store, named).values() for id in found]
            forget_rejected(self.store, named)
        if where is not None:
            wanted_ids += self._ids(where)
        return sum(self.store.remove(some) for some in batches(dict.fromkeys(wanted_ids), BATCH))

    def label(
        self,
        ids: Iterable[int] = (),
        *,
        where: Filter | None = None,
        label: str | None = None,
        metadata: Mapping[str, Value] | None = None,
    ) -> int:
        """Give rows another label, or other metadata (whole), where not None; how many rows there were.

        Raises:
            InputError: an empty filter, or a store not open for writing.
        """
        wanted_ids = [*ids, *(self._ids(where) if where is not None else ())]
        label = None if label is None else unicodedata.normalize("NFC", label)
        return sum(self.store.label(some, label, metadata) for some in batches(dict.fromkeys(wanted_ids), BATCH))

    def calibrate(self) -> Calibrated:
        """Find the cosine that 1 % of the pairs of different labels reach, and keep it; see `search.calibrating`.

        Raises:
            InputError: too few labelled rows, or a store not open for writing.
        """
        from lookalike.gallery.calibration import calibrate

        return calibrate(self.store, str(self.place))

    def verify(self, recall: bool = False, *, k: int = 10, sample: int = 200, seed: int = 0) -> Verified:
        """Look at every row and every derived file.

        Args:
            recall: also compare the approximate search with the exact one.
            k: answers of each.
            sample: rows that are searched for.
            seed: which ones.
        """
        faults = self.store.verify()
        return Verified(faults, self.store.measure_recall(k, sample, seed) if recall else None)

    def info(self) -> dict[str, Any]:
        """What it is, as a tree of plain values: gallery, rows, rejected, model and store."""
        about = self.about
        return {
            "gallery": str(self.place),
            "rows": len(self.store),
            "rejected": len(self.store.rejected()),
            "model": {
                "place": about.model,
                "fingerprint": about.fingerprint,
                "dim": about.dim,
                "image_size": about.image_size,
                "threshold": about.threshold,
                "calibrated_on": about.model_calibrated_on,
            },
            "threshold": about.own_threshold,
            "calibrated_on": about.calibrated_on,
            "store": self.store.facts(),
        }

    def compact(self) -> None:
        """Give back the space of removed rows, and make the derived files anew."""
        self.store.compact()

    def export(self, path: str | Path, *, precision: Precision = "float16", progress: Progress | None = None) -> int:
        """Write all rows to a Parquet file or Lance data set; see `lookalike.gallery.export.export_rows`."""
        from lookalike.gallery.export import export_rows

        return export_rows(self.store, Path(path), precision=precision, progress=progress)

    def duplicates(self, **limits: Any) -> list[Group]:
        """Groups of copies; see `lookalike.gallery.duplicates.find_duplicates`."""
        from lookalike.gallery.duplicates import find_duplicates

        return find_duplicates(self.store, **limits)

    def write_wall(
        self, path: str | Path, query: Any, found: SearchResult | list[SearchResult], *, how: Sequence[str] = ()
    ) -> None:
        """Write a search as a page of pictures; see `lookalike.gallery.results_page.results_page_of`."""
        from lookalike.gallery.results_page import results_page_of

        results_page_of(self.store, Path(path), query, found, title=self.place.name, how=how)

    def _ids(self, where: Filter) -> list[int]:
        if not where:
            raise InputError("an empty filter lets every row through.", "Name a label, a path or other metadata.")
        return [row.id for row in self.store.rows(where=where)]
