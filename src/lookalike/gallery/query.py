"""Queries of a gallery: images, ids and vectors become unit vectors, and the store's answers become search results.

A query is one image, text, id or vector, or several of them: a `Query`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.reranking import MAX_RERANKED, k_reciprocal_order
from lookalike.gallery.store.base import Filter, GalleryInfo, Hit, SearchResult, Store, with_vectors

if TYPE_CHECKING:
    from lookalike.image import ImageLike
    from lookalike.models.pretrained import ImageModel
    from lookalike.models.runtime import TorchRuntime

EMBED_BATCH = 64  # images decoded and embedded together
MAX_K = 1 << 31  # databases take no larger limit
EXPECTED_COPIES = 4  # items of the query's own file that are searched for beyond k, at first
UNLIKE_WEIGHT = 0.5
WHOLE_NUMBER = re.compile(r"\s*-?[0-9]{1,9}\s*")
MIN_LENGTH = 1e-12  # of a vector that has a direction


class NotCalibratedError(InputError):
    """The gallery's threshold is asked for, and the gallery is not calibrated."""


class UnknownItemError(InputError):
    """An item is asked for by an id that the gallery does not have."""


class NoDirectionError(InputError):
    """The vector of a query has length 0 or is not finite, so that it cannot be compared."""


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


@dataclass(frozen=True)
class Text:
    """Words as a query, for a gallery whose model has a text tower, such as CLIP's.

    >>> Text("a dog on a beach")
    Text(text='a dog on a beach')

    Args:
        text: what the hits should show. (A text by itself, without `Text`, is the path of an image.)
    """

    text: str


QueryPart: TypeAlias = "ImageLike | int | np.integer[Any] | NDArray[np.floating[Any]] | QueryVector | Text"
Box = tuple[int, int, int, int]
Threshold = float | Literal["calibrated"] | None


@dataclass(frozen=True, eq=False)
class Query:
    """One query that is made of several images, or of a part of an image: "more like these, less like those".

    With l_1 … l_n the vectors of `like` and u_1 … u_m those of `unlike`, each scaled to length 1, and w the
    `unlike_weight`, the vector of the query is

        unit(mean(l_1 … l_n) - w * mean(u_1 … u_m)),        unit(x) = x / |x|

    as in Rocchio's relevance feedback (1971). Scores are cosines with this vector. The items of `like` and `unlike` are
    no hits; other items of the same files as `like` are in `SearchResult.same`, and those of `unlike` are left out.

    >>> Query(like=["a.jpg", 17], unlike=3)
    Query(like=['a.jpg', 17], unlike=3, unlike_weight=0.5, box=None)

    Args:
        like: images, texts, ids of items and vectors that the hits should resemble: one, or a sequence of at least one.
        unlike: those that they should not resemble: one, or a sequence.
        unlike_weight: w, a number from 0.
        box: use only this part of the image in `like`: left, top, right, bottom in pixels of the upright image. `like`
            then has exactly one image, besides ids and vectors.

    Raises:
        InputError: `like` is empty, the weight is negative or not finite, or there is not one image for the box, or the
            box is empty. Whether it is inside the image is checked by the search.
    """

    like: QueryPart | Sequence[QueryPart]
    unlike: QueryPart | Sequence[QueryPart] = ()
    unlike_weight: float = UNLIKE_WEIGHT
    box: Box | None = None

    def __post_init__(self) -> None:
        if not self.likes:
            raise InputError("a query without anything that the hits should resemble.", "Give at least one: like=")
        if not (math.isfinite(self.unlike_weight) and self.unlike_weight >= 0):
            raise InputError(
                f"unlike_weight is {self.unlike_weight}.", f"Give a number from 0; {UNLIKE_WEIGHT} is usual."
            )
        if self.box is not None:
            images = sum(is_image(part) for part in self.likes)
            if images != 1:
                raise InputError(
                    f"a box is a part of one image, and the query has {images or 'no'} images.",
                    "Give the box with one image file.",
                )
            checked_box(self.box)

    @property
    def likes(self) -> tuple[QueryPart, ...]:
        """`like` as a tuple."""
        return _parts(self.like)

    @property
    def unlikes(self) -> tuple[QueryPart, ...]:
        """`unlike` as a tuple."""
        return _parts(self.unlike)


QueryLike: TypeAlias = "QueryPart | Query"


def _parts(given: Any) -> tuple[QueryPart, ...]:
    return tuple(given) if is_batch(given) else (given,)


def checked_box(box: Sequence[int]) -> Box:
    """Check that a box has four whole numbers, that none is negative, and that it is not empty.

    Raises:
        InputError: it does not.
    """
    remedy = "A box is left, top, right, bottom in pixels of the upright image: 40,30,200,180."
    shown = ",".join(map(str, box))
    if len(box) != 4 or any(isinstance(one, bool) or not isinstance(one, int | np.integer) for one in box):
        raise InputError(f"box {shown}: not four whole numbers.", remedy)
    left, top, right, bottom = map(int, box)
    if left < 0 or top < 0 or left >= right or top >= bottom:
        raise InputError(f"box {shown}: empty, or with a negative number.", remedy)
    return left, top, right, bottom


def parse_box(text: str) -> Box:
    """Parse a box as it is written on a command line or in a URL.

    >>> parse_box("40,30,200,180")
    (40, 30, 200, 180)

    Raises:
        InputError: not four whole numbers, or the box is empty.
    """
    parts = text.split(",")
    numbers: list[Any] = [int(part) if WHOLE_NUMBER.fullmatch(part) else part for part in parts]
    return checked_box(numbers)


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


def is_image(query: object) -> bool:
    """Whether the query is an image, or something that should be one: neither an id nor a vector nor a text."""
    return id_of(query) is None and not is_vector(query) and not isinstance(query, Query | Text)


def name_of(query: object, position: int) -> str:
    """The name of a query in messages and on pages. `position`: its index among several queries."""
    if isinstance(query, Query):
        likes = " + ".join(name_of(part, index) for index, part in enumerate(query.likes))
        unlikes = "".join(f" - {name_of(part, index)}" for index, part in enumerate(query.unlikes))
        box = "" if query.box is None else f", box {','.join(map(str, query.box))}"
        return f"{likes}{unlikes}{box}"
    if (id := id_of(query)) is not None:
        return f"item {id}"
    if isinstance(query, Text):
        return f'"{query.text}"'
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
    queries: Sequence[QueryLike],
    k: int,
    *,
    filter: Filter | None,
    threshold: float | None,
    exact: bool,
    rerank: int | None = None,
) -> list[SearchResult]:
    """Search with several queries; see `Gallery.search` for the arguments, `query_vectors` for `embedder`."""
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}.", "10 is usual.")
    if rerank is not None and not k <= rerank <= MAX_RERANKED:
        raise InputError(
            f"rerank is {rerank}: the candidates must be at least the hits, k = {k:,}, and at most {MAX_RERANKED:,}.",
            "100 is usual.",
        )
    if not queries:
        return []
    k = min(k, MAX_K)
    vectors, origins = query_vectors(queries, store, embedder)
    wanted = k if rerank is None else rerank
    more = max((origin.copies for origin in origins), default=0)
    while True:
        found = store.search(vectors, wanted + more, filter=filter, threshold=threshold, exact=exact)
        results = [_without_origin(one, origin, wanted) for one, origin in zip(found, origins, strict=True)]
        complete = (
            len(result) >= wanted or len(one) < wanted + more for result, one in zip(results, found, strict=True)
        )
        if not more or all(complete):
            break
        more *= 8  # the gallery holds many copies of the query's file
    if rerank is not None:
        results = [_reranked(store, vector, result, k) for vector, result in zip(vectors, results, strict=True)]
    return [replace(result, threshold=threshold, thumbnail=store.thumbnail) for result in results]


def _reranked(store: Store, vector: NDArray[np.float32], result: SearchResult, k: int) -> SearchResult:
    """The first `k` of the hits in the order of k-reciprocal re-ranking."""
    there, vectors = with_vectors(store, result.hits)
    hits = [hit for hit in there if isinstance(hit, Hit)]
    order = k_reciprocal_order(vector, vectors)
    return replace(result, hits=[hits[index] for index in order[:k]], same=result.same[:k])


@dataclass(frozen=True)
class Origin:
    """What identifies the items of a query's own images.

    Args:
        ids: of items that are no hits.
        paths: absolute ones, of items that are no hits.
        digests: SHA-256 of files whose other items are `SearchResult.same`.
        unlike_digests: of files whose items are left out.
    """

    ids: frozenset[int]
    paths: frozenset[str]
    digests: frozenset[bytes]
    unlike_digests: frozenset[bytes]

    @property
    def copies(self) -> int:
        """How many items are searched for beyond k, at first."""
        if not self.digests and not self.unlike_digests:
            return 0
        return EXPECTED_COPIES + max(len(self.digests) + len(self.unlike_digests) - 1, 0)

    @classmethod
    def of(cls, query: Query, digests: Sequence[bytes | None]) -> Origin:
        """The origin of a query. `digests`: of the files of its `likes`, then of its `unlikes`; None: not known."""
        parts = (*query.likes, *query.unlikes)
        count = len(query.likes)
        return cls(
            frozenset(id for part in parts if (id := id_of(part)) is not None),
            frozenset(
                os.path.abspath(part)  # noqa: PTH100 - items keep links, too
                for part in parts
                if isinstance(part, str | Path)
            ),
            frozenset(one for one in digests[:count] if one is not None),
            frozenset(one for one in digests[count:] if one is not None),
        )


def _without_origin(found: SearchResult, origin: Origin, k: int) -> SearchResult:
    """The `k` best hits that are not the query itself; other items with the same bytes go to `same`."""
    others = [hit for hit in found if hit.id not in origin.ids and hit.path not in origin.paths]
    same = [hit for hit in others if hit.digest in origin.digests]
    left_out = origin.digests | origin.unlike_digests
    return SearchResult([hit for hit in others if hit.digest not in left_out][:k], found.exact, same[:k])


def query_vectors(
    queries: Sequence[QueryLike], store: Store, embedder: Callable[[], TorchRuntime]
) -> tuple[NDArray[np.float32], list[Origin]]:
    """The unit vectors of queries, and what identifies their own items.

    This is the one place where queries are normalised, and where the parts of a `Query` become one vector.

    Args:
        queries: images as `lookalike.image` takes them, `Text`s, ids of items, vectors (D,), `QueryVector`s, `Query`s.
        store: of the gallery.
        embedder: returns what computes the vectors of images and texts; called only if there is one.

    Returns:
        (Q, D) float32 of length 1; and an `Origin` for each query.

    Raises:
        InputError: an image cannot be read, a box is not inside its image, an id is unknown, a vector has another
            dimension, another model or no direction; or a query is none of these.
    """
    several = [query if isinstance(query, Query) else Query(like=(query,)) for query in queries]
    parts: list[_Part] = []
    for position, query in enumerate(several):
        is_single = not isinstance(queries[position], Query)
        for index, value in enumerate(query.likes):
            name = name_of(value, position if is_single else index)
            parts.append(_Part(value, name, query.box if is_image(value) else None))
        parts += [_Part(value, f"unlike: {name_of(value, index)}") for index, value in enumerate(query.unlikes)]
    vectors, digests = _part_vectors(parts, store, embedder)
    found = np.empty((len(queries), vectors.shape[1]), np.float64)
    origins = []
    start = 0
    for position, query in enumerate(several):
        middle = start + len(query.likes)
        end = middle + len(query.unlikes)
        found[position] = vectors[start:middle].mean(0)
        if end > middle:
            found[position] -= query.unlike_weight * vectors[middle:end].mean(0)
        origins.append(Origin.of(query, digests[start:end]))
        start = end
    names = [name_of(query, position) for position, query in enumerate(queries)]
    return _unit(found, names).astype(np.float32), origins


@dataclass(frozen=True)
class _Part:
    """An image, text, id or vector of a query, its name for messages, and the box of an image."""

    value: Any
    name: str
    box: Box | None = None


def _part_vectors(
    parts: Sequence[_Part], store: Store, embedder: Callable[[], TorchRuntime]
) -> tuple[NDArray[np.float64], list[bytes | None]]:
    """Unit vectors (N, D) of parts, and the SHA-256 of their files; None where the file is not known."""
    found = np.empty((len(parts), store.about.dim), np.float64)
    digests: list[bytes | None] = [None] * len(parts)
    images: list[int] = []
    texts: list[int] = []
    items: list[tuple[int, int]] = []
    for position, part in enumerate(parts):
        if (id := id_of(part.value)) is not None:
            items.append((position, id))
        elif isinstance(part.value, QueryVector):
            found[position] = _checked_vector(part.value, store.about, part.name)
            digests[position] = part.value.digest
        elif is_vector(part.value):
            found[position] = _checked_vector(QueryVector(np.asarray(part.value)), store.about, part.name)
        elif isinstance(part.value, Text):
            texts.append(position)
        else:
            images.append(position)
    if items:
        ids = [id for _, id in items]
        for (position, id), item in zip(items, store.get(ids), strict=True):
            if item is None:
                raise UnknownItemError(f"the gallery has no item {id}.", "Search results and 'to_pandas' give the ids.")
            digests[position] = item.digest
        found[[position for position, _ in items]] = store.vectors(ids)
    if texts:
        found[texts] = embedder().embed_text([parts[position].value.text for position in texts])
    for start in range(0, len(images), EMBED_BATCH):
        some = images[start : start + EMBED_BATCH]
        found[some], known = _embedded([parts[position] for position in some], embedder())
        for position, digest in zip(some, known, strict=True):
            digests[position] = digest
    return _unit(found, [part.name for part in parts]), digests


def _unit(vectors: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    """The rows scaled to length 1.

    Raises:
        InputError: a row has no direction; the error has its name.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (good := np.isfinite(lengths) & (lengths > MIN_LENGTH)).all():
        position = int(np.argmin(good))
        raise NoDirectionError(
            f"{names[position]} has no direction: its length is {lengths[position, 0]:.3g}.",
            "Give finite numbers that are not all 0, or other images.",
        )
    return vectors / lengths  # type: ignore[no-any-return]


def _embedded(parts: Sequence[_Part], embedder: TorchRuntime) -> tuple[NDArray[np.float32], list[bytes | None]]:
    """Vectors (N, D) of images, and the digests of those that are files."""
    from lookalike.image import decode, decode_part, read_image_file

    pixels, digests = [], []
    for part in parts:
        image = part.value
        data = read_image_file(image) if isinstance(image, str | Path) else image  # once: it may be a pipe
        digests.append(hashlib.sha256(data).digest() if isinstance(data, bytes) else None)
        if part.box is None:
            pixels.append(decode(data, embedder.size, name=part.name, crop_mode=embedder.crop_mode))
        else:
            pixels.append(decode_part(data, part.box, embedder.size, name=part.name, crop_mode=embedder.crop_mode))
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


def info_of(model: ImageModel, where: str) -> GalleryInfo:
    """What a gallery of a model's vectors remembers of it. `where`: its location, from `load_model`."""
    config = model.config
    return GalleryInfo(
        model.fingerprint, model.embedding_dim, where, config.image_size, config.match_threshold, config.dataset
    )


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
