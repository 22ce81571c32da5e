"""`lookalike gallery search` and `lookalike gallery duplicates`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli.console import echo, print_json
from lookalike.cli.gallery_options import AsJson, Filters, Ids, Location, Model, parse_filter
from lookalike.errors import InputError, counted

if TYPE_CHECKING:
    from lookalike.gallery.duplicates import DuplicateGroup
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.query import Text
    from lookalike.gallery.store.base import GalleryItem, SearchResult


def search(
    location: Location,
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="Images to search with; or words, if the gallery's model has a text tower.",
        ),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="WORDS", help="Words to search with, such as 'a dog on a beach'. Repeatable."),
    ] = None,
    ids: Ids = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    filters: Filters = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE",
            help="Lowest score of a hit: a number from -1 to 1, or 'calibrated' (what 'calibrate' found).",
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every item.")] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Make one query of all images, texts and items: their mean.")
    ] = False,
    unlike: Annotated[
        list[Path] | None,
        typer.Option("--unlike", metavar="IMAGE", help="Less like this image; implies --together. Repeatable."),
    ] = None,
    unlike_ids: Annotated[
        list[int] | None,
        typer.Option("--unlike-id", metavar="ID", help="Less like this item; implies --together. Repeatable."),
    ] = None,
    unlike_weight: Annotated[
        float | None,
        typer.Option("--unlike-weight", min=0, help="Weight of the mean of --unlike.", show_default="0.5"),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            "--box",
            metavar="X0,Y0,X1,Y1",
            help="Search with this part of the image, in pixels of the upright image; implies --together.",
        ),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(
            "--rerank",
            min=1,
            metavar="N",
            help="Sort the N nearest items by their k-reciprocal neighbours. 100 is usual; at most 1,000.",
        ),
    ] = None,
    model: Model = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the results as a page with images.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the items most similar to images, words or items, best first.

    What names a file is an image. Each image, each text and each --id is a query of its own, unless --together,
    --unlike or --box makes one query of them.
    """
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.query import UNLIKE_WEIGHT, Query, Text, parse_box, parse_threshold

    if not given and not texts and not ids:
        raise InputError("nothing to search with.", "Give an image or words (--text), or --id with the id of an item.")
    less_like = bool(unlike or unlike_ids)
    if unlike_weight is not None and not less_like:
        raise InputError("--unlike-weight without --unlike.", "Give --unlike or --unlike-id, or leave it out.")
    weight = UNLIKE_WEIGHT if unlike_weight is None else unlike_weight
    part = None if box is None else parse_box(box)
    limit = None if threshold is None else parse_threshold(threshold)
    chosen = parse_filter(filters)
    with Gallery.open(location, model) as gallery:
        others = [*map(Text, texts or ()), *(ids or ())]
        names: list[Any] = [*(_image_or_text(one, gallery) for one in given or ()), *others]
        queries: list[Any] = [_read_pipe(name) for name in names]
        if together or less_like or part is not None:
            unlikes = [*(unlike or ()), *(unlike_ids or ())]
            names = [Query(names, unlikes, weight, part)]
            queries = [Query(queries, [_read_pipe(one) for one in unlikes], weight, part)]
        results = gallery.search(queries, k, filter=chosen, threshold=limit, exact=exact, rerank=rerank)
        words = _settings(gallery, k, results[0].threshold, rerank, filters)
        if html is not None:
            gallery.write_results_page(html, queries, results, notes=words)
        if as_json:
            print_json(_as_tree(gallery, names, results, k, rerank, chosen))
            return
        for name, result in zip(names, results, strict=True):
            echo(_as_text(name, result))
        echo(f"{counted(len(gallery), 'item')}, {', '.join(words)}")
        if html is not None:
            echo(str(html))


def duplicates(
    location: Location,
    bits: Annotated[int | None, typer.Option(min=0, help="Bits of the 64-bit image hash that may differ.")] = None,
    cosine: Annotated[float | None, typer.Option(help="Lowest cosine of the vectors.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find groups of identical files and near-duplicate images."""
    from lookalike.gallery.duplicates import MAX_BITS, MIN_COSINE
    from lookalike.gallery.gallery import Gallery

    limits = {"bits": MAX_BITS if bits is None else bits, "cosine": MIN_COSINE if cosine is None else cosine}
    with Gallery.open(location) as gallery:
        groups = gallery.duplicates(bits=bits, cosine=cosine)
        if as_json:
            print_json({"gallery": str(gallery.location), **limits, "groups": [_as_group(group) for group in groups]})
            return
        for group in groups:
            echo("identical files" if group.exact else "near-duplicates")
            for item in group.items:
                first = None if group.exact else group.copy_of.get(item.id)
                echo(f"  {item.id:>8}  {item.path}{'' if first is None else f'  (same file as {first})'}")
        count = sum(len(group.items) for group in groups)
        echo(f"{counted(len(groups), 'group')}, {counted(count, 'item')} of {len(gallery):,}")


def _image_or_text(given: str, gallery: Gallery) -> Path | Text:
    """An argument as the path of an image or as words.

    It is a path if there is a file, or if it is named like an image. Otherwise it is words, if the model knows words.

    Raises:
        InputError: neither.
    """
    from lookalike.data.image_folder import is_image
    from lookalike.gallery.query import Text

    path = Path(given)
    if _exists(path) or is_image(given):
        return path
    if gallery.embedder.has_text:
        return Text(given)
    raise InputError(
        f"{given}: no such file; and no words to search with, since the model of {gallery.location} has no text tower.",
        "Give an image; or make a gallery with a CLIP model: lookalike models import hf-hub:OWNER/NAME --name clip",
    )


def _read_pipe(query: Any) -> Any:
    """The bytes of a pipe, which can be read only once; other queries as they are."""
    from lookalike.image import read_image_file

    return read_image_file(query) if isinstance(query, Path) and _exists(query) and query.is_fifo() else query


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # words may be too long for the name of a file
        return False


def _as_group(group: DuplicateGroup) -> dict[str, Any]:
    firsts = group.copy_of
    items = [{**_as_item(item), "copy_of": firsts.get(item.id)} for item in group.items]
    return {"exact": group.exact, "items": items}


def _as_item(item: GalleryItem) -> dict[str, Any]:
    return {"id": item.id, "path": item.path, "label": item.label, "metadata": dict(item.metadata)}


def _settings(
    gallery: Gallery, k: int, threshold: float | None, rerank: int | None, filters: list[str] | None
) -> list[str]:
    """The settings of the search, a few words each."""
    words = [f"k = {k:,}"]
    if rerank is not None:
        words.append(f"the {rerank:,} nearest re-ranked")
    if threshold is not None:
        on = f" (calibrated on {gallery.about.calibrated_on})" if threshold == gallery.about.own_threshold else ""
        words.append(f"score from {threshold:.3f}{on}")
    return [*words, *(filters or ())]


def _as_tree(
    gallery: Gallery, names: Sequence[Any], results: Sequence[SearchResult], k: int, rerank: int | None, filter: Any
) -> dict[str, Any]:
    threshold = results[0].threshold
    return {
        "gallery": str(gallery.location),
        "fingerprint": gallery.about.fingerprint,
        "items": len(gallery),
        "k": k,
        "rerank": rerank,
        "filter": filter,
        "threshold": threshold,
        "calibrated": threshold is not None and threshold == gallery.about.own_threshold,
        "calibrated_on": gallery.about.calibrated_on,
        "queries": [
            {
                "query": _as_query(name),
                "exact": result.exact,
                "hits": [{"score": round(hit.score, 6), **_as_item(hit)} for hit in result],
                "same": [_as_item(hit) for hit in result.same],
            }
            for name, result in zip(names, results, strict=True)
        ],
    }


def _as_query(query: Any) -> Any:
    """A query as plain values: a path, a text, an id, or the parts of a `Query`."""
    from lookalike.gallery.query import Text

    if isinstance(query, Path | int):
        return query if isinstance(query, int) else str(query)
    if isinstance(query, Text):
        return {"text": query.text}
    return {
        "like": [_as_query(part) for part in query.likes],
        "unlike": [_as_query(part) for part in query.unlikes],
        "unlike_weight": query.unlike_weight,
        "box": query.box,
    }


def _as_text(name: Any, result: SearchResult) -> str:
    from lookalike.gallery.query import name_of

    lines = [f"{name_of(name, 0)}  ({'exact' if result.exact else 'approximate'})"]
    lines += [f"  same file: {hit.id}  {hit.path}" for hit in result.same]
    for hit in result:
        words = [hit.path] if hit.label is None else [hit.label, hit.path]
        lines.append(f"  {hit.score:6.3f}  {hit.id:>8}  {'  '.join(words)}")
    return "\n".join(lines if result else [*lines, "  no hits"])
