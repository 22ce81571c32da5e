"""The results of a search as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from lookalike.data.scan import printable
from lookalike.files import atomic_write
from lookalike.gallery.query import Box, Query, Text, describe_model, id_of, is_batch, is_image, is_vector, name_of
from lookalike.gallery.store.base import Hit, SearchResult, Store
from lookalike.image import decode, decode_part

TEMPLATE = Path(__file__).parent / "results_page.html.j2"
QUERY_SIDE = 320  # pixels of a query's image
QUERY_QUALITY = 85  # of its JPEG


@dataclass(frozen=True)
class QueryImage:
    """An image, text, item or vector of a query.

    Args:
        name: a path, a text in quotes, "item 17", or "vector 0".
        source: data URI of a JPEG; empty if there is none.
        unlike: whether the hits should not resemble it.
    """

    name: str
    source: str
    unlike: bool = False


@dataclass(frozen=True)
class QueryResult:
    """A query and its result. `images`: what the query is made of, at least one."""

    images: Sequence[QueryImage]
    result: SearchResult


@dataclass(frozen=True)
class Tile:
    """A hit on the page.

    Args:
        source: data URI of the thumbnail; empty if there is none.
        hit: the hit.
        above_threshold: whether its score reaches the calibrated threshold.
    """

    source: str
    hit: Hit
    above_threshold: bool

    @property
    def name(self) -> str:
        """The file name."""
        return last_part(self.hit.path)

    @property
    def facts(self) -> str:
        """The metadata in one line."""
        return " · ".join(f"{key} {value}" for key, value in self.hit.metadata.items())


def last_part(path: str) -> str:
    """The last part of a path, with either kind of slash.

    >>> [last_part(path) for path in ("/photos/a.jpg", "photos/cat/", "item 17")]
    ['a.jpg', 'cat', 'item 17']
    """
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def write_results_page(
    path: Path,
    queries: Sequence[QueryResult],
    thumbnail: Callable[[int], bytes | None],
    *,
    title: str,
    notes: Sequence[str] = (),
    calibrated: float | None = None,
    calibrated_on: str = "",
) -> None:
    """Write the page.

    Args:
        path: the file, in a folder that exists.
        queries: queries and their results, in the order shown.
        thumbnail: returns the JPEG of an item by its id, or None.
        title: of the page, such as the gallery's name.
        notes: short remarks: what was searched, and how.
        calibrated: threshold from which on a hit is framed, if there is one.
        calibrated_on: what the threshold was measured on, in words.

    Raises:
        InputError: the file cannot be written.
    """
    sources: dict[int, str] = {}  # an item that is a hit of several queries is read once

    def tile(hit: Hit) -> Tile:
        if hit.id not in sources:
            sources[hit.id] = data_uri(thumbnail(hit.id) or b"")
        return Tile(sources[hit.id], hit, calibrated is not None and hit.score >= calibrated)

    shown = [
        (
            one.images,
            one.result.exact,
            one.result.same,
            [tile(hit) for hit in one.result],
        )
        for one in queries
    ]
    template = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["last_part"] = last_part
    text = environment.from_string(template).render(
        title=title, notes=notes, queries=shown, calibrated=calibrated, calibrated_on=calibrated_on
    )
    atomic_write(path, printable(text), remedy="Name a file in a folder that exists.")


def results_page_of(
    store: Store,
    path: Path,
    query: Any,
    results: SearchResult | list[SearchResult],
    *,
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """Write the page of a search.

    Args:
        store: that was searched.
        path: the file.
        query: as it was given to `Gallery.search`.
        results: what that returned.
        title: of the page.
        notes: short remarks shown at the top.

    Raises:
        InputError: the file cannot be written.
    """
    queries = list(query) if is_batch(query) else [query]
    several = results if isinstance(results, list) else [results]
    shown = [
        QueryResult(_images_of(one, position, store), result)
        for position, (one, result) in enumerate(zip(queries, several, strict=True))
    ]
    write_results_page(
        path,
        shown,
        store.thumbnail,
        title=title,
        notes=[f"{len(store):,} items", describe_model(store.about), *notes],
        calibrated=store.about.own_threshold,
        calibrated_on=store.about.calibrated_on or "",
    )


def _images_of(query: Any, position: int, store: Store) -> list[QueryImage]:
    """What a query is made of. `position`: its index among several queries."""
    if not isinstance(query, Query):
        return [QueryImage(name_of(query, position), _source_of(query, None, store))]
    likes = [
        QueryImage(name_of(part, index), _source_of(part, query.box if is_image(part) else None, store))
        for index, part in enumerate(query.likes)
    ]
    unlikes = [
        QueryImage(name_of(part, index), _source_of(part, None, store), unlike=True)
        for index, part in enumerate(query.unlikes)
    ]
    return likes + unlikes


def _source_of(query: Any, box: Box | None, store: Store) -> str:
    """An image as the square that the model sees, a JPEG as data URI; empty for a text or a vector."""
    if (id := id_of(query)) is not None:
        return data_uri(store.thumbnail(id) or b"")
    if is_vector(query) or isinstance(query, Text):
        return ""
    file = io.BytesIO()
    pixels = decode(query, QUERY_SIDE) if box is None else decode_part(query, box, QUERY_SIDE)
    Image.fromarray(pixels).save(file, "JPEG", quality=QUERY_QUALITY, optimize=True)
    return data_uri(file.getvalue())


def data_uri(jpeg: bytes) -> str:
    """A JPEG as a data URI; empty stays empty."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""
