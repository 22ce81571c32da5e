"""What a store is: the rows of a gallery, kept so that none is lost, and found by their vectors.

A store knows nothing of pictures or networks. It takes finished rows and gives them back. Both stores pass one test
suite, `tests/gallery/test_stores.py`, which is the definition where words are not.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError

Value = str | int | float | bool | None  # of metadata


LARGEST_DIM = 1 << 16  # numbers of a vector, and pixels of a side


Filter = Mapping[str, Value | Sequence[Value]]  # equal to the value, or to one of several; all of them must hold


class ReplacedError(InputError):
    """A store that is open is no longer the one at its place: that is gone, or another one is there now."""


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
        return f"{self.own_rows:,} labelled rows of this gallery, {self.own_labels:,} labels"

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
        except InputError:  # the gallery is closed
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
    """The rows of one gallery as they were at one moment, whatever is changed meanwhile. For one thread."""

    about: GalleryInfo

    def __len__(self) -> int:
        """Rows."""
        ...

    def rows(self) -> Iterator[GalleryItem]:
        """All rows in ascending order of id, not all in memory at once."""
        ...

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Rows in the order asked for; None for ids that are not there."""
        ...

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(len(ids), D) float32, in the order asked for.

        Raises:
            InputError: an id that is not there.
        """
        ...

    def thumbnails(self, ids: Sequence[int]) -> list[bytes]:
        """The small JPEGs of rows in the order asked for; empty where there is no such row or no thumbnail."""
        ...


class Store(Protocol):
    """The rows of one gallery.

    Stores are context managers; leaving one closes it. One may be used from several threads, which take turns; threads
    that are to search at once open a store each. What a method has returned from is durable: it outlives a
    crash of the process and of the machine. Any number of readers may be open while one writes; a reader sees whole
    batches.
    Every method raises `InputError` where the store is damaged, gone, full or read-only, naming the file or table, and
    `ReplacedError`, one of these, where another gallery is in its place now. Of a change this may be found after
    it was made, in the gallery that was there.
    Vectors are kept as float16; scores are of the kept vectors.
    """

    about: GalleryInfo

    def close(self) -> None:
        """Let it go. A writer first leaves the store fast to search, where that is not too much."""
        ...

    def __enter__(self) -> Store: ...

    def __exit__(self, *exc: object) -> None: ...

    def __len__(self) -> int:
        """Rows."""
        ...

    def add(self, rows: Sequence[NewItem]) -> list[int]:
        """Keep rows, all or none; their ids. A path twice among them: the last one counts, the others' ids are its id.

        Raises:
            InputError: a vector of another dimension, not of length 1 (within 1e-3) or not finite; the store is
                open for reading, held by another writer, or its disk is full.
        """
        ...

    def remove(self, ids: Sequence[int]) -> int:
        """Remove rows; how many there were. Ids that are not there are no error."""
        ...

    def update(self, ids: Sequence[int], label: str | None = None, metadata: Mapping[str, Value] | None = None) -> int:
        """Change the label or metadata (whole) of rows, where not None; how many rows there were."""
        ...

    def get(self, ids: Sequence[int]) -> list[GalleryItem | None]:
        """Rows in the order asked for; None for ids that are not there."""
        ...

    def thumbnail(self, id: int) -> bytes | None:
        """The small JPEG of a row; None where there is no such row or no thumbnail."""
        ...

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(len(ids), D) float32, in the order asked for.

        Raises:
            InputError: an id that is not there.
        """
        ...

    def by_path(self, paths: Sequence[str]) -> dict[str, GalleryItem]:
        """The rows of those paths that are there."""
        ...

    def by_digest(self, digests: Sequence[bytes]) -> dict[bytes, GalleryItem]:
        """For those digests that are there, the row of the lowest id."""
        ...

    def rows(self, after: int = 0, filter: Filter | None = None) -> Iterator[GalleryItem]:
        """Rows of an id above `after`, in ascending order of id, not all in memory at once."""
        ...

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """All that is kept as of this moment, by a connection of its own, until the block is left."""
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
        """The rows nearest to each query.

        Args:
            queries: (Q, D) float32 of length 1.
            k: answers at most; fewer where fewer rows pass `filter` and `threshold`.
            filter: only rows with this label and metadata; "label" and "path" name the row's own, any other key its
                metadata. A filter never costs answers: filtered search is exact or as good as unfiltered.
            threshold: only rows of at least this score.
            exact: compare with all rows, however many there are.

        Raises:
            InputError: queries of another dimension or not finite, or k below 1.
        """
        ...

    def count(self, filter: Filter | None = None) -> int:
        """Rows that pass."""
        ...

    def labels(self, most: int) -> list[tuple[str, int]]:
        """The most frequent labels and their rows, at most so many; of equally frequent ones by their code points."""
        ...

    def calibrated(self, about: GalleryInfo) -> None:
        """Keep what the rows' own labels say: `about` with another `own_threshold`, `own_rows` and `own_labels`."""
        ...

    def reject(self, files: Sequence[FailedFile]) -> None:
        """Remember files that could not be read; one entry for each path. Adding a row of that path forgets it."""
        ...

    def rejected(self) -> list[FailedFile]:
        """All of them, by path."""
        ...

    def forget(self, paths: Sequence[str]) -> None:
        """Forget rejected files."""
        ...

    def compact(self) -> None:
        """Give back the space of removed rows and make derived files anew; the store stays usable meanwhile."""
        ...

    def check(self) -> list[Problem]:
        """Look at everything: every row and vector, every derived file. An empty list: all is well."""
        ...

    def measure_recall(self, k: int = 10, sample: int = 200, seed: int = 0) -> float:
        """Recall@k of the approximate search against the exact one, mean over `sample` rows as queries; 1.0 where
        searches are exact anyway.
        """
        ...

    def facts(self) -> dict[str, str | int | float]:
        """What there is to say of the store itself: kind, place, bytes, how many rows the approximate index covers."""
        ...


# Rows of a store in batches, with their vectors, also while somebody else removes some of them.

ItemT = TypeVar("ItemT")


def batches(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """The items, `size` at a time; the last batch may be smaller.

    >>> list(batches(range(5), 2))
    [[0, 1], [2, 3], [4]]
    """
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def with_vectors(store: Store, rows: Sequence[GalleryItem]) -> tuple[list[GalleryItem], NDArray[np.float32]]:
    """Those of the rows that are still there, and their vectors, (rows, D) float32.

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
            if len(still) == len(there):  # none was removed: it is something else
                raise
            there = still
