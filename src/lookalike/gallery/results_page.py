"""A wall of results: one HTML file that needs nothing beside it, for a screen, a phone or paper."""

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
from lookalike.gallery.query import describe_model, id_of, is_batch, is_vector, name_of
from lookalike.gallery.store.base import Hit, SearchResult, Store
from lookalike.image import decode

HERE = Path(__file__).parent
SIDE = 320  # pixels of a query's picture
QUALITY = 85


@dataclass(frozen=True)
class QueryResult:
    """A query and its answers.

    Args:
        name: what to call it: a path, "row 17", "a vector".
        picture: JPEG; empty where there is none to show.
        found: the answers.
    """

    name: str
    picture: bytes
    found: SearchResult


@dataclass(frozen=True)
class Tile:
    """An answer as it is shown: a data URI, empty without a thumbnail, and the words below it."""

    source: str
    hit: Hit
    sure: bool

    @property
    def name(self) -> str:
        """The last part of its path."""
        return last_part(self.hit.path)

    @property
    def facts(self) -> str:
        """Its metadata in a line."""
        return " · ".join(f"{key} {value}" for key, value in self.hit.metadata.items())


def last_part(path: str) -> str:
    """The last part of a path, however its parts are kept apart.

    >>> [last_part(path) for path in ("/photos/a.jpg", "photos/cat/", "row 17")]
    ['a.jpg', 'cat', 'row 17']
    """
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def write_results_page(
    path: Path,
    asked: Sequence[QueryResult],
    thumbnail: Callable[[int], bytes | None],
    *,
    title: str,
    notes: Sequence[str] = (),
    calibrated: float | None = None,
    calibrated_on: str = "",
) -> None:
    """Write the wall: complete or not at all.

    Args:
        path: the file, in a folder that exists.
        asked: queries and their answers, in the order shown.
        thumbnail: the JPEG of a row by its id, or None.
        title: of the page, such as the gallery's name.
        notes: what was searched and how, a few words each.
        calibrated: the cosine from which on an answer is framed, which 1 % of the pairs of different labels reach.
        calibrated_on: what that was measured on, in words.

    Raises:
        InputError: the file cannot be written.
    """
    pictures: dict[int, str] = {}  # a row that answers several queries is read once

    def tile(hit: Hit) -> Tile:
        if hit.id not in pictures:
            pictures[hit.id] = data_uri(thumbnail(hit.id) or b"")
        return Tile(pictures[hit.id], hit, calibrated is not None and hit.score >= calibrated)

    shown = [
        (
            one.name,
            data_uri(one.picture),
            one.found.exact,
            one.found.same,
            [tile(hit) for hit in one.found],
        )
        for one in asked
    ]
    template = (HERE / "wall.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["last_part"] = last_part
    text = environment.from_string(template).render(
        title=title, notes=notes, asked=shown, calibrated=calibrated, calibrated_on=calibrated_on
    )
    atomic_write(path, printable(text), remedy="Name a file in a folder that exists.")


def results_page_of(
    store: Store,
    path: Path,
    query: Any,
    found: SearchResult | list[SearchResult],
    *,
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """Write the wall of a search.

    Args:
        store: that was searched.
        path: of the HTML file.
        query: as it was given to `Gallery.search`.
        found: what that returned.
        title: of the page.
        notes: what else to say at the top, a few words each.

    Raises:
        InputError: the file cannot be written.
    """
    queries = list(query) if is_batch(query) else [query]
    answers = found if isinstance(found, list) else [found]
    asked = [
        QueryResult(name_of(each, place), _picture_of(each, store), answer)
        for place, (each, answer) in enumerate(zip(queries, answers, strict=True))
    ]
    write_results_page(
        path,
        asked,
        store.thumbnail,
        title=title,
        notes=[f"{len(store):,} pictures", describe_model(store.about), *notes],
        calibrated=store.about.own_threshold,
        calibrated_on=store.about.calibrated_on or "",
    )


def _picture_of(query: Any, store: Store) -> bytes:
    """A query as a JPEG, the square that the model sees; empty where there is no picture."""
    if (id := id_of(query)) is not None:
        return store.thumbnail(id) or b""
    if is_vector(query):
        return b""
    file = io.BytesIO()
    Image.fromarray(decode(query, SIDE)).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as the address of a picture; empty stays empty."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""
