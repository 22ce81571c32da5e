"""What a person asks a gallery with, a picture, the id of a row, a vector, or several, becomes vectors and answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.gallery.store.base import Filter, GalleryInfo, SearchResult, Store

if TYPE_CHECKING:
    from lookalike.image import Picture
    from lookalike.models.inference import Embedder
    from lookalike.models.pretrained import ImageModel

BATCH = 64  # pictures decoded at a time


MOST = 1 << 31  # answers; more cannot be asked of a database


COPIES = 4  # rows of a query's own file that are looked for at first


Query: TypeAlias = "Picture | int | np.integer[Any] | NDArray[np.floating[Any]]"


Threshold = float | Literal["calibrated", "default"] | None


class SearchOptions(TypedDict, total=False):
    """Options of `Gallery.search`."""

    where: Filter | None
    threshold: Threshold
    exact: bool
    fingerprint: str | None
    digest: bytes | None


def are_several(query: object) -> bool:
    """Whether it is several queries: a list or tuple of them, (Q, D) vectors, or (N, H, W, 3) pictures."""
    if isinstance(query, np.ndarray):
        return query.ndim == (2 if is_vector(query) else 4)
    return isinstance(query, list | tuple)


def is_vector(query: object) -> bool:
    """Whether it is an array of floating numbers."""
    return isinstance(query, np.ndarray) and query.dtype.kind == "f"


def id_of(query: object) -> int | None:
    """The id that it is, if it is one."""
    return int(query) if isinstance(query, int | np.integer) and not isinstance(query, bool) else None


def name_of(query: object, place: int) -> str:
    """What to call a query, the `place`th of several."""
    if (id := id_of(query)) is not None:
        return f"row {id}"
    if is_vector(query):
        return f"vector {place}"
    return str(query) if hasattr(query, "__fspath__") or isinstance(query, str) else f"image {place}"


def limit_of(threshold: Threshold, about: GalleryInfo, place: str) -> float | None:
    """The least cosine that is asked of an answer; None where there is none.

    Raises:
        InputError: "calibrated" where the gallery was not calibrated on its own labels, or what is no cosine.
    """
    if threshold is None or threshold == "default":
        return None if threshold is None else about.own_threshold
    if threshold == "calibrated":
        if about.own_threshold is None:
            raise InputError(f"{place}: has no calibrated threshold.", calibrate_first(about))
        return about.own_threshold
    if not isinstance(threshold, float | int) or not -1 <= threshold <= 1:
        raise InputError(
            f"{threshold!r} is no threshold.", "Give a cosine from -1 to 1, 'calibrated', or None for none."
        )
    return float(threshold)


def calibrate_first(about: GalleryInfo) -> str:
    """What to do where a gallery has no threshold of its own, and what the model's is worth."""
    known = (
        "" if about.threshold is None else f" ({about.threshold:.3f} is the model's, for {about.model_calibrated_on})"
    )
    return f"Calibrate it on its labels (lookalike gallery calibrate), or give a cosine{known}."


def answers(
    store: Store,
    embedder: Callable[[], Embedder],
    queries: Sequence[Query],
    k: int,
    *,
    where: Filter | None,
    threshold: float | None,
    exact: bool,
    digest: bytes | None = None,
) -> list[SearchResult]:
    """The answers to queries. A row is not its own answer, asked for by its id or its path; other rows of the same file
    are in `Found.same`. For the arguments see `vectors_of`, `Store.search`, and `digest` `Gallery.search`.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}.", "10 is usual.")
    if not queries:
        return []
    if digest is not None and len(queries) > 1:
        raise InputError("a digest belongs to one query.", "Ask with one vector at a time, or without a digest.")
    k = min(k, MOST)
    vectors, digests = vectors_of(queries, store, embedder)
    own = [_own_of(query, known or digest) for query, known in zip(queries, digests, strict=True)]
    more = COPIES if any(one.digest for one in own) else 0
    while True:
        found = store.search(vectors, k + more, where=where, threshold=threshold, exact=exact)
        told = [_told_apart(each, one, k) for each, one in zip(found, own, strict=True)]
        enough = (len(some.hits) >= k or len(each.hits) < k + more for some, each in zip(told, found, strict=True))
        if not more or all(enough):
            return told
        more *= 8  # many copies of one file


@dataclass(frozen=True)
class Own:
    """What tells the rows of a query's own file: its id, its absolute path, and the SHA-256 of its content."""

    id: int | None = None
    path: str | None = None
    digest: bytes | None = None


def _own_of(query: Query, digest: bytes | None) -> Own:
    path = os.path.abspath(query) if isinstance(query, str | Path) else None  # noqa: PTH100 - as rows have it: links kept
    return Own(id_of(query), path, digest)


def _told_apart(found: SearchResult, own: Own, k: int) -> SearchResult:
    others = [hit for hit in found.hits if hit.row.id != own.id and hit.row.path != own.path]
    same = [hit for hit in others if hit.row.digest == own.digest]
    return SearchResult([hit for hit in others if hit.row.digest != own.digest][:k], found.exact, same[:k])


def vectors_of(
    queries: Sequence[Query], store: Store, embedder: Callable[[], Embedder]
) -> tuple[NDArray[np.float32], list[bytes | None]]:
    """The vectors of queries, and the SHA-256 of the files that they are of.

    Args:
        queries: pictures as `lookalike.image` takes them, ids of rows, and vectors (D,).
        store: the gallery's.
        embedder: gives what turns pictures into vectors; called where there is a picture.

    Returns:
        (Q, D) float32 of length 1; and for each query a digest, None of vectors and pixels.

    Raises:
        InputError: a picture that cannot be read, an id that is not there, a vector of another dimension or that has no
            direction; or what is none of these.
    """
    found = np.empty((len(queries), store.about.dim), np.float32)
    digests: list[bytes | None] = [None] * len(queries)
    pictures: list[int] = []
    rows: list[tuple[int, int]] = []
    for place, query in enumerate(queries):
        if (id := id_of(query)) is not None:
            rows.append((place, id))
        elif is_vector(query):
            found[place] = _unit(np.asarray(query), store.about, name_of(query, place))
        else:
            pictures.append(place)
    if rows:
        ids = [id for _, id in rows]
        for (place, id), row in zip(rows, store.get(ids), strict=True):
            if row is None:
                raise InputError(f"the gallery has no row {id}.", "Ids are in the answers of a search; see also info.")
            digests[place] = row.digest
        found[[place for place, _ in rows]] = store.vectors(ids)
    for low in range(0, len(pictures), BATCH):
        some = pictures[low : low + BATCH]
        found[some], known = _embedded([(queries[place], name_of(queries[place], place)) for place in some], embedder())
        for place, digest in zip(some, known, strict=True):
            digests[place] = digest
    return found, digests


def _embedded(named: Sequence[tuple[Any, str]], embedder: Embedder) -> tuple[NDArray[np.float32], list[bytes | None]]:
    from lookalike.image import prepare, read_picture

    pixels, digests = [], []
    for picture, name in named:
        data = read_picture(picture) if isinstance(picture, str | Path) else picture  # once: it may be a pipe
        digests.append(hashlib.sha256(data).digest() if isinstance(data, bytes) else None)
        pixels.append(prepare(data, embedder.size, name, crop_mode=embedder.crop_mode))
    return embedder.vectors(np.stack(pixels)), digests


def _unit(vector: NDArray[np.floating[Any]], about: GalleryInfo, name: str) -> NDArray[np.float32]:
    if vector.shape != (about.dim,):
        numbers = " × ".join(map(str, vector.shape))
        raise InputError(
            f"{name} has {numbers or 'no'} numbers, those of this gallery have {about.dim}.",
            f"It wants {wanted(about)}.",
        )
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    if not np.isfinite(length) or length == 0:
        raise InputError(f"{name} has no direction: its length is {length}.", "Give finite numbers, not all 0.")
    return (wide / length).astype(np.float32)


# The model that a gallery was made with: found again, and told from any other.


def wanted(about: GalleryInfo) -> str:
    """The model that a gallery wants, in words."""
    return f"the model {about.fingerprint[:12]}…{f' ({about.model})' if about.model else ''}"


def load_model(model: ImageModel | str | Path) -> tuple[ImageModel, str]:
    """A model, and where it is as far as that is known: the whole path of a folder, a Hub id, or "default".

    Raises:
        InputError: no such model.
    """
    if not isinstance(model, str | Path):
        return model, ""
    from lookalike.models.pretrained import load
    from lookalike.models.serialization import DEFAULT

    folder = Path(model).expanduser()
    return load(model), str(folder.resolve()) if folder.is_dir() and model != DEFAULT else str(model)


def check_model(model: ImageModel, about: GalleryInfo, what: str) -> None:
    """Refuse a model that is not the one wanted.

    Raises:
        InputError: it has another fingerprint; `what` is called by its name, and the model that it wants.
    """
    if model.fingerprint != about.fingerprint:
        raise InputError(
            f"{what}: made by another model than {model.config.name} {model.fingerprint[:12]}….",
            f"It wants {wanted(about)}.",
        )


def check_fingerprint(fingerprint: str, about: GalleryInfo, what: str) -> None:
    """Refuse a query of another model.

    Raises:
        InputError: it is of one.
    """
    if fingerprint != about.fingerprint:
        raise InputError(f"the query is of the model {fingerprint[:12]}….", f"{what} wants {wanted(about)}.")


def checked_embedder(model: ImageModel | str | Path, about: GalleryInfo, what: str) -> Embedder:
    """What turns pictures into vectors with this model.

    Raises:
        InputError: no such model, or not the one wanted.
    """
    loaded, _ = load_model(model)
    check_model(loaded, about, what)
    from lookalike.models.inference import Embedder

    return Embedder(loaded)


def remembered_embedder(about: GalleryInfo, what: str) -> Embedder:
    """Likewise, with the model that the gallery remembers.

    Raises:
        InputError: it remembers none, or that one is gone, or another now.
    """
    if not about.model:
        raise InputError(f"{what}: no model is given, and it remembers none.", f"Give {wanted(about)}.")
    try:
        return checked_embedder(about.model, about, what)
    except InputError as error:
        raise InputError(f"{what}: wants {wanted(about)}, but: {error.message}", "Give that model's folder.") from None
