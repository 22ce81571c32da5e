"""Queries of a gallery: images, ids and vectors become unit vectors, and the store's answers become search results."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import Filter, GalleryInfo, SearchResult, Store

if TYPE_CHECKING:
    from lookalike.image import ImageLike
    from lookalike.models.pretrained import ImageModel
    from lookalike.models.runtime import TorchRuntime

EMBED_BATCH = 64  # images decoded and embedded together
MAX_K = 1 << 31  # databases take no larger limit
EXPECTED_COPIES = 4  # items of the query's own file that are searched for beyond k, at first


class NotCalibratedError(InputError):
    """The gallery's threshold is asked for, and the gallery is not calibrated."""


class UnknownItemError(InputError):
    """An item is asked for by an id that the gallery does not have."""


@dataclass(frozen=True)
class QueryVector:
    """A vector as a query, with what is known of its origin.

    Args:
        vector: (D,), of any length but 0.
        fingerprint: of the model that made it; a gallery of another model refuses it.
        digest: SHA-256 (32 bytes) of the image file. Items of the same file are then in `SearchResult.same`.
    """

    vector: NDArray[np.floating[Any]]
    fingerprint: str | None = None
    digest: bytes | None = None


Query: TypeAlias = "ImageLike | int | np.integer[Any] | NDArray[np.floating[Any]] | QueryVector"
Threshold = float | Literal["calibrated"] | None


def is_batch(query: object) -> bool:
    """Whether these are several queries: a list or tuple, vectors (Q, D), or images (N, H, W, 3)."""
    if isinstance(query, np.ndarray):
        return query.ndim == (2 if is_vector(query) else 4)
    return isinstance(query, list | tuple)


def is_vector(query: object) -> bool:
    """Whether the query is a vector or an array of them."""
    return isinstance(query, QueryVector) or (isinstance(query, np.ndarray) and query.dtype.kind == "f")


def id_of(query: object) -> int | None:
    """The query as the id of an item; None if it is something else."""
    return int(query) if isinstance(query, int | np.integer) and not isinstance(query, bool) else None


def name_of(query: object, position: int) -> str:
    """The name of a query in messages and on pages. `position`: its index among several queries."""
    if (id := id_of(query)) is not None:
        return f"item {id}"
    if is_vector(query):
        return f"vector {position}"
    return str(query) if hasattr(query, "__fspath__") or isinstance(query, str) else f"image {position}"


def parse_threshold(text: str) -> Threshold:
    """Parse a threshold as it is written on a command line or in a URL.

    >>> parse_threshold("0.7"), parse_threshold("calibrated"), parse_threshold("none")
    (0.7, 'calibrated', None)

    Raises:
        InputError: the text is neither a number from -1 to 1, nor "calibrated", nor "none".
    """
    if text == "none":
        return None
    if text == "calibrated":
        return "calibrated"
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    return _checked_cosine(value, text)


def resolve_threshold(threshold: Threshold, about: GalleryInfo, location: str) -> float | None:
    """The lowest cosine of a hit that `threshold` stands for in this gallery; None: there is no limit.

    Raises:
        InputError: "calibrated", and the gallery is not calibrated; or not a cosine.
    """
    if threshold is None:
        return None
    if threshold == "calibrated":
        if about.own_threshold is None:
            raise NotCalibratedError(f"{location}: has no calibrated threshold.", calibrate_first(about))
        return about.own_threshold
    return _checked_cosine(threshold, threshold)


def _checked_cosine(value: object, given: object) -> float:
    if not isinstance(value, float | int) or not -1 <= value <= 1:
        raise InputError(f"threshold {given!r}: not a cosine.", "Give a number from -1 to 1, 'calibrated' or none.")
    return float(value)


def calibrate_first(about: GalleryInfo) -> str:
    """What to do if a gallery is not calibrated, with the model's own threshold for comparison."""
    known = (
        "" if about.threshold is None else f" ({about.threshold:.3f} is the model's, for {about.model_calibrated_on})"
    )
    return f"Calibrate it on its labels (lookalike gallery calibrate), or give a cosine{known}."


def search_store(
    store: Store,
    embedder: Callable[[], TorchRuntime],
    queries: Sequence[Query],
    k: int,
    *,
    filter: Filter | None,
    threshold: float | None,
    exact: bool,
) -> list[SearchResult]:
    """Search with several queries; see `Gallery.search` for the arguments, `query_vectors` for `embedder`."""
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}.", "10 is usual.")
    if not queries:
        return []
    k = min(k, MAX_K)
    vectors, digests = query_vectors(queries, store, embedder)
    origins = [_Origin.of(query, digest) for query, digest in zip(queries, digests, strict=True)]
    more = EXPECTED_COPIES if any(digests) else 0
    while True:
        found = store.search(vectors, k + more, filter=filter, threshold=threshold, exact=exact)
        results = [_without_origin(one, origin, k) for one, origin in zip(found, origins, strict=True)]
        complete = (len(result) >= k or len(one) < k + more for result, one in zip(results, found, strict=True))
        if not more or all(complete):
            return [replace(result, threshold=threshold, thumbnail=store.thumbnail) for result in results]
        more *= 8  # the gallery holds many copies of the query's file


@dataclass(frozen=True)
class _Origin:
    """What identifies the items of a query's own file: its id, its absolute path, the SHA-256 of its content."""

    id: int | None
    path: str | None
    digest: bytes | None

    @classmethod
    def of(cls, query: Query, digest: bytes | None) -> _Origin:
        path = os.path.abspath(query) if isinstance(query, str | Path) else None  # noqa: PTH100 - items keep links, too
        return cls(id_of(query), path, digest)


def _without_origin(found: SearchResult, origin: _Origin, k: int) -> SearchResult:
    """The `k` best hits that are not the query itself; other items with the same bytes go to `same`."""
    others = [hit for hit in found if hit.id != origin.id and hit.path != origin.path]
    same = [hit for hit in others if hit.digest == origin.digest]
    return SearchResult([hit for hit in others if hit.digest != origin.digest][:k], found.exact, same[:k])


def query_vectors(
    queries: Sequence[Query], store: Store, embedder: Callable[[], TorchRuntime]
) -> tuple[NDArray[np.float32], list[bytes | None]]:
    """The unit vectors of queries, and the SHA-256 of their files.

    This is the one place where queries are normalised.

    Args:
        queries: images as `lookalike.image` takes them, ids of items, vectors (D,), `QueryVector`s.
        store: of the gallery.
        embedder: returns what computes the vectors of images; called only if there is an image.

    Returns:
        (Q, D) float32 of length 1; and a digest for each query, None if the file is not known.

    Raises:
        InputError: an image cannot be read, an id is unknown, a vector has another dimension, another model or
            no direction; or a query is none of these.
    """
    found = np.empty((len(queries), store.about.dim), np.float64)
    digests: list[bytes | None] = [None] * len(queries)
    images: list[int] = []
    items: list[tuple[int, int]] = []
    for position, query in enumerate(queries):
        if (id := id_of(query)) is not None:
            items.append((position, id))
        elif isinstance(query, QueryVector):
            found[position] = _checked_vector(query, store.about, name_of(query, position))
            digests[position] = query.digest
        elif is_vector(query):
            found[position] = _checked_vector(QueryVector(np.asarray(query)), store.about, name_of(query, position))
        else:
            images.append(position)
    if items:
        ids = [id for _, id in items]
        for (position, id), item in zip(items, store.get(ids), strict=True):
            if item is None:
                raise UnknownItemError(f"the gallery has no item {id}.", "Search results and 'to_pandas' give the ids.")
            digests[position] = item.digest
        found[[position for position, _ in items]] = store.vectors(ids)
    for start in range(0, len(images), EMBED_BATCH):
        some = images[start : start + EMBED_BATCH]
        named = [(queries[position], name_of(queries[position], position)) for position in some]
        found[some], known = _embedded(named, embedder())
        for position, digest in zip(some, known, strict=True):
            digests[position] = digest
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if not (good := np.isfinite(lengths) & (lengths > 0)).all():
        position = int(np.argmin(good))
        raise InputError(
            f"{name_of(queries[position], position)} has no direction: its length is {lengths[position, 0]}.",
            "Give finite numbers, not all 0.",
        )
    return (found / lengths).astype(np.float32), digests


def _embedded(
    named: Sequence[tuple[Any, str]], embedder: TorchRuntime
) -> tuple[NDArray[np.float32], list[bytes | None]]:
    """Vectors (N, D) of images with their names, and the digests of those that are files."""
    from lookalike.image import decode, read_image_file

    pixels, digests = [], []
    for image, name in named:
        data = read_image_file(image) if isinstance(image, str | Path) else image  # once: it may be a pipe
        digests.append(hashlib.sha256(data).digest() if isinstance(data, bytes) else None)
        pixels.append(decode(data, embedder.size, name=name, crop_mode=embedder.crop_mode))
    return embedder.embed(np.stack(pixels)), digests


def _checked_vector(query: QueryVector, about: GalleryInfo, name: str) -> NDArray[np.floating[Any]]:
    if query.fingerprint is not None:
        check_fingerprint(query.fingerprint, about, name)
    if query.vector.shape != (about.dim,):
        shape = " × ".join(map(str, query.vector.shape))
        raise InputError(
            f"{name} has {shape or 'no'} numbers, the vectors of this gallery have {about.dim}.",
            f"It needs a vector of {describe_model(about)}.",
        )
    return query.vector


# The model that made a gallery's vectors.


def describe_model(about: GalleryInfo) -> str:
    """The model of a gallery, in words."""
    return f"the model {about.fingerprint[:12]}…{f' ({about.model})' if about.model else ''}"


def check_fingerprint(fingerprint: str, about: GalleryInfo, what: str) -> None:
    """Refuse a model that did not make a gallery's vectors: the one check, for all callers.

    Args:
        fingerprint: of the model in use.
        about: of the gallery.
        what: location of the gallery, or name of the query, for the message.

    Raises:
        InputError: the fingerprints differ.
    """
    if fingerprint != about.fingerprint:
        raise InputError(
            f"{what}: the model {fingerprint[:12]}… did not make the vectors of the gallery.",
            f"Use {describe_model(about)}.",
        )


def load_model(model: ImageModel | str | Path) -> tuple[ImageModel, str]:
    """Load a model.

    Returns:
        The model and its location: absolute path of a folder, Hub id, or "default"; empty for a model in memory.

    Raises:
        InputError: there is no such model.
    """
    if not isinstance(model, str | Path):
        return model, ""
    from lookalike.models.pretrained import load
    from lookalike.models.serialization import DEFAULT

    folder = Path(model).expanduser()
    return load(model), str(folder.resolve()) if folder.is_dir() and model != DEFAULT else str(model)


def model_embedder(model: ImageModel | str | Path, about: GalleryInfo, location: str) -> TorchRuntime:
    """What computes vectors with this model.

    Raises:
        InputError: there is no such model, or it did not make the gallery's vectors.
    """
    from lookalike.models.runtime import TorchRuntime

    loaded, _ = load_model(model)
    check_fingerprint(loaded.fingerprint, about, location)
    return TorchRuntime(loaded)


def remembered_embedder(about: GalleryInfo, location: str) -> TorchRuntime:
    """What computes vectors with the model that the gallery remembers.

    Raises:
        InputError: it remembers none, or that model is gone or has changed.
    """
    if not about.model:
        raise InputError(
            f"{location}: the location of its model is not known.", f"Give the folder of {describe_model(about)}."
        )
    try:
        return model_embedder(about.model, about, location)
    except InputError as error:
        raise InputError(
            f"{location}: needs {describe_model(about)}, but: {error.message}", "Give the folder of that model."
        ) from None
