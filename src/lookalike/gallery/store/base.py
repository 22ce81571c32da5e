"""The types of a gallery and the interface of a store, which keeps its items and finds them by their vectors.

A store knows nothing of images or networks. Both stores, in a folder and in PostgreSQL, pass one test suite,
`tests/gallery/test_stores.py`.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError

Value = str | int | float | bool | None  # of metadata


LARGEST_DIM = 1 << 16  # numbers of a vector, and pixels of a side


class AnyValue(Enum):
    """In a filter: any value but null."""

    ANY = "any"


# Equal to the value, to one of several, or not null; all of them must hold.
Filter = Mapping[str, Value | Sequence[Value] | AnyValue]


class ReplacedError(InputError):
    """A store that is open is no longer the one at its place.

    It is gone, another one is there now, or its vectors have become those of another model.
    """


@dataclass(frozen=True)
class GalleryInfo:
    """What a gallery was made with, written when it is created; and what its own labels say, once it is calibrated.

    Args:
        fingerprint: SHA-256 (hex) of the weights of the model that makes the vectors.
        dim: numbers of a vector.
        model: where that model was, for a person to find it again.
        image_size: pixels of the side of what the model sees.
        threshold: the model's: cosine that 1 % of the pairs of different classes reach, among images like those that it
            was trained on; None where not known.
        data: the data set that this was measured on; empty where not known.
        own_threshold: cosine that 1 % of the pairs of different labels reach, among this gallery's own rows; None: it
            was not calibrated.
        own_rows: labelled rows that this rests on, and `own_labels` how many labels they have.
    """

    fingerprint: str
    dim: int
    model: str = ""
    image_size: int = 0
    threshold: float | None = None
    data: str = ""
    own_threshold: float | None = None
    own_rows: int = 0
    own_labels: int = 0

    @property
    def calibrated_on(self) -> str | None:
        """What `own_threshold` rests on, in words; None where there is none."""
        if self.own_threshold is None:
            return None
        return f"{self.own_rows:,} labelled items of this gallery with {self.own_labels:,} labels"

    @property
    def model_calibrated_on(self) -> str:
        """What the model's `threshold` rests on, in words."""
        return f"images of {self.data}" if self.data else "images like those that the model was trained on"

    @classmethod
    def from_tree(cls, tree: Any) -> GalleryInfo:
        """What was stored, from its JSON.

        Args:
            tree: of plain values, of any kind.

        Raises:
            ValueError: not an object of these fields with values that can be, with the field's name.
        """
        try:
            about = cls(**tree)
        except TypeError as error:
            raise ValueError(str(error).rpartition(".")[2]) from None
        if not (isinstance(about.fingerprint, str) and isinstance(about.model, str)):
            raise ValueError("'fingerprint' or 'model' is no text")
        if type(about.dim) is not int or not 1 <= about.dim <= LARGEST_DIM:
            raise ValueError(f"'dim' is not a number from 1 to {LARGEST_DIM}")
        if type(about.image_size) is not int or not 0 <= about.image_size <= LARGEST_DIM:
            raise ValueError(f"'image_size' is not a number from 0 to {LARGEST_DIM}")
        if about.threshold is not None and not (
            type(about.threshold) in {int, float} and -1 <= about.threshold <= 1  # false of NaN
        ):
            raise ValueError("'threshold' is no cosine")
        return about


@dataclass(frozen=True)
class NewItem:
    """An image to store.

    Args:
        path: unique in the gallery. An item with the same path is replaced and gets a new id.
        digest: SHA-256 (32 bytes) of the file's content, so that the same content is not embedded twice.
        vector: (D,) float32 of length 1.
        size: bytes of the file. Size and `modified` only serve to notice changes.
        modified: time of the file's last change, in nanoseconds since 1970.
        label: class of the image, for filters; None if unknown.
        metadata: further values, for filters.
        thumbnail: a small JPEG; empty if there is none.
        dhash: 64-bit difference hash of the pixels, to find near-duplicates.
    """

    path: str
    digest: bytes
    vector: NDArray[np.float32]
    size: int = 0
    modified: int = 0
    label: str | None = None
    metadata: Mapping[str, Value] = field(default_factory=dict)
    thumbnail: bytes = b""
    dhash: int = 0


@dataclass(frozen=True)
class GalleryItem:
    """A stored image, without its vector and thumbnail.

    Args:
        id: of the item; never used again, also after the item was removed.
        path: unique in the gallery.
        digest: SHA-256 (32 bytes) of the file's content.
        size: bytes of the file.
        modified: time of the file's last change, in nanoseconds since 1970.
        label: class of the image; None if unknown.
        metadata: further values, by name.
        dhash: 64-bit difference hash of the pixels.
    """

    id: int
    path: str
    digest: bytes = field(repr=False)
    size: int = field(repr=False)
    modified: int = field(repr=False)
    label: str | None
    metadata: Mapping[str, Value]
    dhash: int = field(repr=False)


@dataclass(frozen=True)
class Hit(GalleryItem):
    """An item that a search found. `score`: cosine similarity of its vector and the query's, -1 to 1."""

    score: float

    @classmethod
    def of(cls, item: GalleryItem, score: float) -> Hit:
        """Make a hit from an item."""
        return cls(**vars(item), score=score)


@dataclass(frozen=True, repr=False)
class SearchResult(Sequence[Hit]):
    """The hits for one query, best first; equal scores are ordered by id. A notebook shows their thumbnails.

    Args:
        hits: the same hits as a list.
        exact: whether the query was compared with every item.
        same: items whose file has the same bytes as the query's file, at most `k`. They pass the filter and the
            threshold and are not among the hits.
        threshold: lowest score that was asked for; None if there was none.
        thumbnail: returns the JPEG of an item by its id.
    """

    hits: list[Hit]
    exact: bool
    same: list[Hit] = field(default_factory=list)
    threshold: float | None = None
    thumbnail: Callable[[int], bytes | None] | None = field(default=None, compare=False)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...

    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __repr__(self) -> str:
        lines = [f"  {hit.score:6.3f}  {hit.label or '-'}  {hit.path}" for hit in self.hits]
        return "\n".join([f"SearchResult of {len(self)} hits ({'exact' if self.exact else 'approximate'})", *lines])

    def _repr_html_(self) -> str:
        """Show the hits as a row of thumbnails with score, label and file name."""
        tiles = "".join(_tile(hit, self._image_of(hit)) for hit in self.hits)
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{tiles or "no hits"}</div>'

    def _image_of(self, hit: Hit) -> bytes:
        try:
            return (self.thumbnail(hit.id) if self.thumbnail is not None else None) or b""
        except Exception:  # the gallery is closed: show the hits without thumbnails
            return b""


def _tile(hit: Hit, jpeg: bytes) -> str:
    """A hit as HTML."""
    name = re.split(r"[/\\]", hit.path)[-1]
    box = "width:144px;height:144px;object-fit:contain;background:#8882"
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    image = f'<img src="{source}" alt="" style="{box}">' if jpeg else f'<div style="{box}"></div>'
    words = [f"{hit.score:.3f}", *([f"<b>{html.escape(hit.label)}</b>"] if hit.label else []), html.escape(name)]
    style = "margin:0;width:144px;font-size:12px;overflow-wrap:anywhere"
    caption = f"<figcaption>{' '.join(words)}</figcaption>"
    return f'<figure style="{style}" title="{html.escape(hit.path)}">{image}{caption}</figure>'


@dataclass(frozen=True)
class FailedFile:
    """A file that could not be added. It is tried again once its size or time of change differs."""

    path: str
    reason: str
    size: int = 0
    modified: int = 0


@dataclass(frozen=True)
class Problem:
    """Something that `check` found.

    Args:
        what: the problem, with the file or table.
        remedy: what to do.
        mended: already repaired (derived files), or repaired by the next `compact`.
    """

    what: str
    remedy: str
    mended: bool = False


class Snapshot(Protocol):
    """The items of a gallery as of one moment, whatever changes meanwhile. For one thread."""

    about: GalleryInfo

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def rows(self) -> Iterator[GalleryItem]:
        """Yield all items in ascending order of id, without loading all of them into memory."""
        ...

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Return items in the order of the ids; None for ids that do not exist."""
        ...

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return vectors in the order of the ids, (len(ids), D) float32.

        Raises:
            InputError: an id does not exist.
        """
        ...

    def thumbnails(self, ids: Sequence[int]) -> list[bytes]:
        """Return thumbnails in the order of the ids; empty for ids that do not exist or have none."""
        ...


class Reembedding(Protocol):
    """The vectors of another model, kept beside the ones in use until there is one for every item.

    They are found again after the process was killed; not so those computed from thumbnails, which count only until
    this object is closed.
    """

    def ids(self) -> NDArray[np.int64]:
        """Return the ids that have a new vector, (N,) int64; some of these items may have been removed."""
        ...

    def add(
        self, ids: Sequence[int], vectors: NDArray[np.float32], from_thumbnails: Sequence[bool] | None = None
    ) -> None:
        """Keep new vectors. They are durable when this returns.

        Args:
            ids: of the items.
            vectors: (N, D) float32 of length 1.
            from_thumbnails: of each vector whether it was computed from a thumbnail; None: none was.
        """
        ...

    def switch(self, lost: Mapping[int, FailedFile]) -> bool:
        """Replace all vectors, and the model in `Store.about`, at once; the new vectors are no longer kept beside.

        Args:
            lost: items to remove, by id, and how they are recorded among the files that could not be added. Items that
                do not exist are not recorded.

        Returns:
            False, and nothing was changed: an item that is not among `lost` has no new vector.
        """
        ...


class Store(Protocol):
    """The items of one gallery.

    A store is a context manager that closes it. Several threads may use one store; they take turns. To search in
    several threads at once, open a store in each. A change is durable when the method returns: it outlives a crash of
    the process and of the machine. Any number of readers and writers may be open; they see each other's changes as
    whole batches.

    Every method raises `InputError` if the store is damaged, gone, full or read-only; the message names the file or
    table. It raises `ReplacedError`, a kind of `InputError`, if another gallery is now at the same location. A change
    may have been made by then, in the gallery that was there before.

    Vectors are stored as float16, and scores are those of the stored vectors.
    """

    about: GalleryInfo

    def close(self) -> None:
        """Close the store. A writer first makes searches fast, if that does not take too long."""
        ...

    def __enter__(self) -> Store: ...

    def __exit__(self, *exc: object) -> None: ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def add(self, rows: Sequence[NewItem]) -> list[int]:
        """Add items, all or none, and return their ids.

        Of several items with the same path the last one is added, and its id is returned for all of them.

        Raises:
            InputError: a vector has another dimension, is not finite, or does not have length 1 (within 1e-3); the
                store is open for reading, or its disk is full.
        """
        ...

    def remove(self, ids: Sequence[int]) -> int:
        """Remove items and return how many existed. Other ids are ignored."""
        ...

    def update(self, ids: Sequence[int], label: str | None = None, metadata: Mapping[str, Value] | None = None) -> int:
        """Set the label or the metadata of items, if not None, and return how many exist."""
        ...

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Return items in the order of the ids; None for ids that do not exist."""
        ...

    def thumbnail(self, id: int) -> bytes | None:
        """Return the thumbnail of an item, a small JPEG; None if it has none or does not exist."""
        ...

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return vectors in the order of the ids, (len(ids), D) float32.

        Raises:
            InputError: an id does not exist.
        """
        ...

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """Return the items of those paths that exist."""
        ...

    def by_digest(self, digests: Sequence[bytes]) -> dict[bytes, GalleryItem]:
        """Return the item with the lowest id of each digest that exists."""
        ...

    def rows(self, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
        """Yield the items with an id above `after` that pass a filter, in ascending order of id.

        All are as of the moment of the first. Not all of them are in memory at once.
        """
        ...

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Read everything as of this moment, through a connection of its own, until the block ends."""
        ...

    def search(
        self,
        queries: NDArray[np.float32],
        k: int = 10,
        *,
        filter: Filter | None = None,
        threshold: float | None = None,
        exact: bool = False,
    ) -> list[SearchResult]:
        """Return the items nearest to each query.

        Args:
            queries: (Q, D) float32 of length 1.
            k: number of hits; fewer if fewer items pass `filter` and `threshold`.
            filter: only items with this label and metadata. "label" and "path" are those of the item, any other key is
                one of its metadata. With a filter, a search is exact or finds as much as without.
            threshold: lowest score of a hit.
            exact: compare the query with all items.

        Raises:
            InputError: a query has another dimension, is not finite, or does not have length 1 (within 1e-3); or k is
                below 1.
        """
        ...

    def count(self, filter: Filter | None = None) -> int:
        """Return the number of items that pass a filter."""
        ...

    def labels(self, most: int) -> list[tuple[str, int]]:
        """Return the `most` most frequent labels with their numbers of items; equally frequent ones by code point."""
        ...

    def calibrated(self, about: GalleryInfo) -> None:
        """Store the result of a calibration: `about` with new `own_threshold`, `own_rows` and `own_labels`."""
        ...

    def reembedding(self, about: GalleryInfo) -> AbstractContextManager[Reembedding]:
        """Prepare to replace the vectors by those of another model; what an earlier call has kept of it is there.

        Every other store of this gallery that is open raises `ReplacedError` once the vectors are replaced.

        Args:
            about: the model.

        Raises:
            InputError: another process does so already, or the store is open for reading.
        """
        ...

    def reject(self, files: Sequence[FailedFile]) -> None:
        """Record files that could not be added, one record for each path. Adding an item of that path deletes it."""
        ...

    def rejected(self) -> list[FailedFile]:
        """Return the records of files that could not be added, by path."""
        ...

    def forget(self, paths: Sequence[str]) -> None:
        """Delete the records of files that could not be added."""
        ...

    def compact(self, *, discard_reembed: bool = False) -> None:
        """Free the space of removed items and make the index again. The store stays usable meanwhile.

        Args:
            discard_reembed: also remove what stopped calls of `reembedding` have kept.

        Raises:
            InputError: the store is open for reading; another compaction is running; with `discard_reembed`, a process
                is computing the vectors of another model.
        """
        ...

    def check(self) -> list[Problem]:
        """Check every item, vector and index file, and return the problems."""
        ...

    def measure_recall(self, k: int = 10, sample: int = 200, seed: int = 0) -> float:
        """Return recall@k of the approximate search against the exact one; 1.0 if searches are exact anyway.

        It is the mean over `sample` items as queries.
        """
        ...

    def facts(self) -> dict[str, str | int | float]:
        """Return facts about the store: kind, location, bytes, number of items in the approximate index."""
        ...


# Items in batches, with their vectors, while others may remove some of them

ItemT = TypeVar("ItemT")


def batches(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Yield the items in lists of `size`; the last one may be shorter.

    >>> list(batches(range(5), 2))
    [[0, 1], [2, 3], [4]]
    """
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def with_vectors(store: Store, rows: Sequence[GalleryItem]) -> tuple[list[GalleryItem], NDArray[np.float32]]:
    """Return those of the items that still exist, and their vectors, (N, D) float32.

    Raises:
        InputError: the store cannot be read.
    """
    there = list(rows)
    while True:
        ids = [row.id for row in there]
        try:
            return there, store.vectors(ids)
        except InputError:
            still = [row for row in store.get(ids) if row is not None]
            if len(still) == len(there):  # none was removed: another error
                raise
            there = still
