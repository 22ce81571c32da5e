"""A gallery: images stored with the vectors of one model, and searched by visual similarity.

from lookalike import Gallery

with Gallery.create("photos.gallery", "runs/r18/model") as gallery:
    gallery.add("photos/")
    for hit in gallery.search("photo.jpg", k=5):
        print(hit.score, hit.path)
"""

from __future__ import annotations

import html
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.extras import missing
from lookalike.gallery.item_paths import forget_failed, items_at
from lookalike.gallery.query import (
    Query,
    QueryLike,
    QueryVector,
    Text,
    Threshold,
    check_fingerprint,
    info_of,
    is_batch,
    load_model,
    model_embedder,
    remembered_embedder,
    resolve_threshold,
    search_store,
)
from lookalike.gallery.store.base import Filter, GalleryInfo, Problem, SearchResult, Store, Value, batches
from lookalike.gallery.store.location import PostgresLocation, create_store, open_store, parse_location
from lookalike.gallery.vote import NEIGHBOURS, Vote, labelled_only, vote

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from lookalike.data.labelled import LabelledItems
    from lookalike.gallery.calibration import Calibrated
    from lookalike.gallery.duplicates import DuplicateGroup
    from lookalike.gallery.export import Precision, Progress
    from lookalike.gallery.ingest import IngestReport
    from lookalike.gallery.ray import Cluster
    from lookalike.gallery.reembed import Lost, ReembedReport
    from lookalike.gallery.sources.base import Source
    from lookalike.models.pretrained import ImageModel
    from lookalike.models.runtime import TorchRuntime

CHANGE_BATCH = 4096  # items removed or updated in one transaction


@dataclass(frozen=True)
class CheckResult:
    """What `Gallery.check` found: no problems if the list is empty; recall@k of the approximate search, if measured."""

    problems: list[Problem]
    recall: float | None = None


class Gallery:
    """Images that can be searched by similarity. Use `create`, `create_from` or `open`; a context manager.

    Args:
        store: the gallery's items.
        location: folder of the gallery, or its place in a database.
        model: the model that made the vectors, or its name for `lookalike.load`. None: the one that the gallery
            remembers, loaded when it is first needed.
    """

    def __init__(
        self, store: Store, location: Path | PostgresLocation, model: ImageModel | str | Path | None = None
    ) -> None:
        self.store = store
        self.location = location
        self._embedder = None if model is None else model_embedder(model, store.about, str(location))

    @classmethod
    def create(cls, location: str | Path, model: ImageModel | str | Path = "default") -> Gallery:
        """Create an empty gallery and open it for writing.

        Args:
            location: a folder that does not exist yet, or `postgresql://USER@HOST/DATABASE#NAME`.
            model: makes the vectors. Its folder or name is remembered and need not be given again.
                "default": the model in the package.

        Raises:
            InputError: the location exists or cannot be created, or there is no such model.
        """
        parsed = parse_location(location)
        loaded, where = load_model(model)
        return cls(create_store(parsed, info_of(loaded, where)), parsed, loaded)

    @classmethod
    def create_from(
        cls,
        location: str | Path,
        exported: str | Path,
        model: ImageModel | str | Path | None = None,
        *,
        progress: Progress | None = None,
    ) -> Gallery:
        """Create a gallery from a file that `export` wrote and open it for writing.

        Items get new ids, in the same order.

        A folder is created completely or not at all. For a database the file is validated before the first item is
        sent; if the connection breaks later, the items that have arrived stay.

        Args:
            location: as for `create`.
            exported: the file.
            model: if given, it must be the model that the file names.
            progress: called with (items done, items in all).

        Raises:
            InputError: as for `create`, or the file is damaged or no export.
        """
        from lookalike.gallery.export import Exported, create_filled

        source = Exported(Path(exported))
        if model is not None:
            check_fingerprint(load_model(model)[0].fingerprint, source.about, str(exported))
        create_filled(parse_location(location), source, progress)
        return cls.open(location, model, write=True)

    @classmethod
    def open(cls, location: str | Path, model: ImageModel | str | Path | None = None, write: bool = False) -> Gallery:
        """Open an existing gallery.

        Args:
            location: as for `create`.
            model: None: the model that the gallery remembers, loaded when an image has to be embedded.
            write: whether items may be changed. A folder has one writer at a time.

        Raises:
            InputError: there is no gallery, it is damaged, another process writes to it, or another model made it.
        """
        parsed = parse_location(location)
        store = open_store(parsed, write=write)
        try:
            return cls(store, parsed, model)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the gallery. Leaving a `with` block does this, too."""
        self.store.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return f"Gallery({str(self.location)!r})"

    def _repr_html_(self) -> str:
        """Show a short table of facts."""
        about = self.about
        facts = {"gallery": str(self.location), "model": about.model or f"{about.fingerprint[:12]}…"}
        try:
            facts["items"] = f"{len(self):,}"
        except InputError:
            facts["items"] = "closed"
        facts["threshold"] = "not calibrated" if about.own_threshold is None else f"{about.own_threshold:.3f}"
        rows = (f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
        return f"<table>{''.join(rows)}</table>"

    @property
    def about(self) -> GalleryInfo:
        """The model's fingerprint and location, the vectors' dimension, and the thresholds."""
        return self.store.about

    @property
    def embedder(self) -> TorchRuntime:
        """Computes vectors: of the model that was given, or else of the one that the gallery remembers.

        Raises:
            InputError: no model is remembered, it is gone, or it has changed.
        """
        if self._embedder is None:
            self._embedder = remembered_embedder(self.about, str(self.location))
        return self._embedder

    def add(
        self,
        *sources: Source,
        label: str | None = None,
        folder_labels: bool = True,
        sync: bool = False,
        allow_empty: bool = False,
        cluster: Cluster | None = None,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Add images. Files that are already in the gallery and have not changed are skipped.

        Args:
            sources: files, folders, patterns, tables, data sets; see
                `lookalike.gallery.sources.resolve.resolve_source`.
            label: label of all images.
            folder_labels: whether the names of class folders become labels.
            sync: also remove items whose files are gone from the source folders.
            allow_empty: with `sync`, also remove items of source folders that are gone or have no images left.
            cluster: the machines that read, decode and embed; None: this one.
            progress: called with (files done, files in all) once the files done are on the disk.

        Raises:
            InputError: see `lookalike.gallery.ingest.ingest`.
        """
        from lookalike.gallery.ingest import ingest

        return ingest(
            self.store,
            self.embedder,
            sources,
            label=label,
            folder_labels=folder_labels,
            sync=sync,
            allow_empty=allow_empty,
            cluster=cluster,
            progress=progress,
        )

    def watch(
        self,
        *folders: str | Path,
        label: str | None = None,
        folder_labels: bool = True,
        stop: threading.Event | None = None,
        on_report: Callable[[IngestReport], None] | None = None,
        on_missing: Callable[[InputError], None] | None = None,
    ) -> None:
        """Keep the gallery in sync with folders on disk, until `stop` is set or for ever.

        Args:
            folders: folders of images.
            label: label of all images.
            folder_labels: whether the names of class folders become labels.
            stop: ends the watch after the current scan.
            on_report: called with the report of each scan.
            on_missing: called with an error when a folder is gone or suddenly empty; its items stay.

        Raises:
            InputError: see `lookalike.gallery.watch.watch`.
        """
        from lookalike.gallery.watch import watch

        watch(
            self.store,
            self.embedder,
            folders,
            label=label,
            folder_labels=folder_labels,
            stop=stop,
            on_report=on_report,
            on_missing=on_missing,
        )

    @overload
    def search(  # noqa: D418
        self,
        query: str | Path | bytes | Image | int | QueryVector | Text | Query,
        k: int = ...,
        *,
        filter: Filter | None = ...,
        threshold: Threshold = ...,
        exact: bool = ...,
        rerank: int | None = ...,
    ) -> SearchResult:
        """One query."""

    @overload
    def search(  # noqa: D418
        self,
        query: list[Any] | tuple[Any, ...],
        k: int = ...,
        *,
        filter: Filter | None = ...,
        threshold: Threshold = ...,
        exact: bool = ...,
        rerank: int | None = ...,
    ) -> list[SearchResult]:
        """Several queries."""

    @overload
    def search(  # noqa: D418
        self,
        query: NDArray[Any],
        k: int = ...,
        *,
        filter: Filter | None = ...,
        threshold: Threshold = ...,
        exact: bool = ...,
        rerank: int | None = ...,
    ) -> Any:
        """One vector or image, or several: the array's shape decides."""

    def search(
        self,
        query: QueryLike | Sequence[QueryLike],
        k: int = 10,
        *,
        filter: Filter | None = None,
        threshold: Threshold = None,
        exact: bool = False,
        rerank: int | None = None,
    ) -> SearchResult | list[SearchResult]:
        """Find the `k` nearest items; fewer only if fewer items pass the filter and the threshold.

        Args:
            query: an image (path, bytes of a file, Pillow image, (H, W, 3) uint8 array), the id of an item, or a vector
                (floating-point array (D,) or `QueryVector`), or a `Text`. Several of them as one query, "less like"
                others, or a part of an image: a `Query`. Several queries: a list of these, vectors (Q, D), or images
                (N, H, W, 3). An item that is given by its id or path is not a hit for itself; other items whose files
                have the same bytes are in `SearchResult.same`, not among the hits.
            k: number of hits.
            filter: only items with this label, path and metadata: `{"label": ["cat", "dog"], "year": 2012}`.
            threshold: lowest cosine similarity of a hit; "calibrated": the one that `calibrate` found.
            exact: compare with every item instead of using the approximate index.
            rerank: sort so many of the nearest items, from `k` to 1,000, by their k-reciprocal neighbours
                (`lookalike.gallery.reranking`) and return the first `k`. Scores are still cosines, and no longer
                descend. 100 candidates take about 4 ms more; None: no re-ranking.

        Returns:
            The hits, best first; for several queries, a list of results.

        Raises:
            InputError: a query cannot be read, is an unknown id or belongs to another model, or it is a text and the
                model has no text tower; a box is not inside its
                image; the gallery is not calibrated; `k` is below 1; or `rerank` is below `k` or above 1,000.
        """
        several = is_batch(query)
        queries: list[QueryLike] = list(query) if several else [query]  # type: ignore[arg-type, list-item]
        limit = resolve_threshold(threshold, self.about, str(self.location))
        results = search_store(
            self.store, lambda: self.embedder, queries, k, filter=filter, threshold=limit, exact=exact, rerank=rerank
        )
        return results if several else results[0]

    @overload
    def predict(  # noqa: D418
        self,
        query: str | Path | bytes | Image | int | QueryVector | Text | Query,
        k: int = ...,
        *,
        neighbours: int = ...,
        threshold: Threshold = ...,
    ) -> Vote:
        """One query."""

    @overload
    def predict(  # noqa: D418
        self, query: list[Any] | tuple[Any, ...], k: int = ..., *, neighbours: int = ..., threshold: Threshold = ...
    ) -> list[Vote]:
        """Several queries."""

    def predict(
        self,
        query: QueryLike | Sequence[QueryLike],
        k: int = 5,
        *,
        neighbours: int = NEIGHBOURS,
        threshold: Threshold = None,
    ) -> Vote | list[Vote]:
        """Label images by a vote among their nearest labelled items; no model is trained.

        The weight of a neighbour grows with its score; see `lookalike.gallery.vote.vote`. Neither an item that is given
        by its id or path nor items of the same file have a vote.

        Args:
            query: as for `search`.
            k: labels of each result.
            neighbours: labelled items that vote, at most.
            threshold: lowest score of a neighbour, as for `search`; if none reaches it, the image is unknown.

        Returns:
            The labels with their shares of the vote, the largest first; for several queries, a list of results.

        Raises:
            InputError: as `search`; no item has a label; or `k` is below 1.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, not {k}.", "5 is usual.")
        filter = labelled_only(self.store, str(self.location))
        several = is_batch(query)
        queries: list[Any] = list(query) if several else [query]  # type: ignore[arg-type]
        found = self.search(queries, neighbours, filter=filter, threshold=threshold)
        votes = [vote(result.hits, k) for result in found]
        return votes if several else votes[0]

    def remove(self, ids: Iterable[int] = (), *, paths: Iterable[str | Path] = (), filter: Filter | None = None) -> int:
        """Remove items and return how many there were. The image files stay.

        Args:
            ids: ids of items.
            paths: paths as the items have them, or relative to the working directory. A folder, zip or Parquet file
                stands for all items below it, whether or not it still exists. Failed files there are forgotten.
            filter: items that pass this filter.

        Raises:
            InputError: the filter is empty (it would remove everything), or the gallery is not open for writing.
        """
        chosen = [*ids]
        if named := [str(path) for path in paths]:
            chosen += [id for found in items_at(self.store, named).values() for id in found]
            forget_failed(self.store, named)
        if filter is not None:
            chosen += self._ids(filter)
        return sum(self.store.remove(some) for some in batches(dict.fromkeys(chosen), CHANGE_BATCH))

    def update(
        self,
        ids: Iterable[int] = (),
        *,
        filter: Filter | None = None,
        label: str | None = None,
        metadata: Mapping[str, Value] | None = None,
    ) -> int:
        """Change the label or the metadata of items and return how many there were.

        Args:
            ids: ids of items.
            filter: items that pass this filter.
            label: new label; None: unchanged.
            metadata: replaces all metadata of an item; None: unchanged.

        Raises:
            InputError: the filter is empty, or the gallery is not open for writing.
        """
        chosen = [*ids, *(self._ids(filter) if filter is not None else ())]
        label = None if label is None else unicodedata.normalize("NFC", label)
        return sum(self.store.update(some, label, metadata) for some in batches(dict.fromkeys(chosen), CHANGE_BATCH))

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of items: (len(ids), D), unit length, in the order of `ids`.

        Raises:
            InputError: there is no item with one of these ids.
        """
        return self.store.vectors(ids)

    def labelled(self) -> LabelledItems:
        """The items that have a label and their vectors, for `lookalike.fit`; an `InputError` if there are none."""
        from lookalike.gallery.labelled import labelled_items

        return labelled_items(self.store, str(self.location))

    def to_pandas(self) -> pd.DataFrame:
        """Return all items as a table: index `id`; columns `path`, `label`, `size`, and `metadata.NAME` for each name.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise missing("the package pandas is not installed.", "pandas") from None
        rows = [
            {"id": item.id, "path": item.path, "label": item.label, "size": item.size}
            | {f"metadata.{name}": value for name, value in item.metadata.items()}
            for item in self.store.rows()
        ]
        return pd.DataFrame(rows, columns=None if rows else ["id", "path", "label", "size"]).set_index("id")

    def calibrate(self) -> Calibrated:
        """Find the cosine that 1 % of the pairs of items with different labels reach, and store it as the threshold.

        Raises:
            InputError: too few items have labels, or the gallery is not open for writing.
        """
        from lookalike.gallery.calibration import calibrate

        return calibrate(self.store, str(self.location))

    def reembed(
        self, model: ImageModel | str | Path, *, lost: Lost = "stop", progress: Progress | None = None
    ) -> ReembedReport:
        """Give the gallery another model: compute all vectors anew from the image files, then replace them at once.

        The old vectors serve until then. The call can be stopped at any moment and repeated: it goes on. Items keep
        their ids, labels, metadata and thumbnails; a calibrated threshold is forgotten. Every other open `Gallery` of
        this location raises `ReplacedError` afterwards.

        Args:
            model: as for `create`.
            lost: what happens to items whose files cannot be used, since they are gone, have changed, or were uploaded:
                "stop" replaces nothing; "thumbnail" embeds their thumbnails, of 192 pixels at most; "remove" removes
                them and records them among the failed files, unless the fault may pass (a file that cannot be read).
            progress: called with (items done, items in all).

        Raises:
            InputError: see `lookalike.gallery.reembed.reembed`.
        """
        from lookalike.gallery.reembed import reembed
        from lookalike.models.runtime import TorchRuntime

        loaded, where = load_model(model)
        embedder = TorchRuntime(loaded)
        about = info_of(loaded, where)
        report = reembed(self.store, embedder, about, str(self.location), lost=lost, progress=progress)
        self._embedder = embedder
        return report

    def check(self, recall: bool = False, *, k: int = 10, sample: int = 200, seed: int = 0) -> CheckResult:
        """Verify every item and every index file.

        Args:
            recall: also measure the recall@k of the approximate search against the exact one.
            k: hits of each search.
            sample: number of items that are used as queries.
            seed: seed of the sample.
        """
        problems = self.store.check()
        return CheckResult(problems, self.store.measure_recall(k, sample, seed) if recall else None)

    def info(self) -> dict[str, Any]:
        """Return the facts of the gallery as plain values: location, items, failed files, model, thresholds, store."""
        about = self.about
        return {
            "gallery": str(self.location),
            "items": len(self.store),
            "failed": len(self.store.rejected()),
            "model": {
                "location": about.model,
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

    def compact(self, *, discard_reembed: bool = False) -> None:
        """Free the space of removed items, and with `discard_reembed` of a stopped `reembed`; rebuild the index."""
        self.store.compact(discard_reembed=discard_reembed)

    def export(self, path: str | Path, *, precision: Precision = "float16", progress: Progress | None = None) -> int:
        """Write all items to a Parquet file or Lance data set; see `lookalike.gallery.export.export_rows`."""
        from lookalike.gallery.export import export_rows

        return export_rows(self.store, Path(path), precision=precision, progress=progress)

    def duplicates(self, *, bits: int | None = None, cosine: float | None = None) -> list[DuplicateGroup]:
        """Find groups of identical files and near-duplicate images.

        Args:
            bits: bits of the 64-bit difference hash that may differ, 0 to 5; default 5.
            cosine: lowest cosine of the vectors; default 0.9.

        Raises:
            InputError: see `lookalike.gallery.duplicates.find_duplicates`.
        """
        from lookalike.gallery.duplicates import MAX_BITS, MIN_COSINE, find_duplicates

        return find_duplicates(
            self.store, bits=MAX_BITS if bits is None else bits, cosine=MIN_COSINE if cosine is None else cosine
        )

    def write_results_page(
        self, path: str | Path, query: Any, results: SearchResult | list[SearchResult], *, notes: Sequence[str] = ()
    ) -> None:
        """Write the results of a search as one HTML file with images.

        Args:
            path: the file.
            query: as it was given to `search`.
            results: what `search` returned.
            notes: short remarks shown at the top.

        Raises:
            InputError: the file cannot be written.
        """
        from lookalike.gallery.results_page import results_page_of

        results_page_of(self.store, Path(path), query, results, title=self.location.name, notes=notes)

    def _ids(self, filter: Filter) -> list[int]:
        if not filter:
            raise InputError("an empty filter lets every item through.", "Name a label, a path or other metadata.")
        return [item.id for item in self.store.rows(filter=filter)]
