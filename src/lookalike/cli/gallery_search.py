"""`lookalike gallery search` and `duplicates`: what looks alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli.console import AsJson, Filter, Model, Target, counted, echo, parse_filter, print_json
from lookalike.errors import InputError

if TYPE_CHECKING:
    from lookalike.gallery.duplicates import Group
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.store.base import GalleryItem, SearchResult


def search(
    target: Target,
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Pictures to search with.")] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="A row to search with; repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    filters: Filter = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="COSINE",
            help="Lowest score of a hit: a number, or 'calibrated' (what 'calibrate' found).",
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every row.")] = False,
    model: Model = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a wall of results.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the pictures that look most like others, the likeliest first."""
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.query import parse_threshold

    queries: list[Any] = [*(images or ()), *(ids or ())]
    if not queries:
        raise InputError("nothing to search with.", "Give a picture, or --id and the id of a row.")
    limit = None if threshold is None else parse_threshold(threshold)
    chosen = parse_filter(filters)
    with Gallery.open(target, model) as gallery:
        found = gallery.search(queries, k, filter=chosen, threshold=limit, exact=exact)
        words = _how(gallery, k, found[0].threshold, filters)
        if html is not None:
            gallery.write_results_page(html, queries, found, notes=words)
        if as_json:
            print_json(_as_tree(gallery, queries, found, k, chosen))
            return
        for query, each in zip(queries, found, strict=True):
            echo(_as_text(query, each))
        echo(f"{counted(len(gallery), 'row')}, {', '.join(words)}")
        if html is not None:
            echo(str(html))


def duplicates(
    target: Target,
    bits: Annotated[int | None, typer.Option(min=0, help="Of 64 of the picture's hash that may differ.")] = None,
    cosine: Annotated[float | None, typer.Option(help="Of the vectors, at least.")] = None,
    as_json: AsJson = False,
) -> None:
    """Group copies: files that are the same byte for byte, and pictures that are nearly the same."""
    from lookalike.gallery.duplicates import BITS, COSINE
    from lookalike.gallery.gallery import Gallery

    limits = {"bits": BITS if bits is None else bits, "cosine": COSINE if cosine is None else cosine}
    with Gallery.open(target) as gallery:
        groups = gallery.duplicates(bits=bits, cosine=cosine)
        if as_json:
            print_json({"gallery": str(gallery.location), **limits, "groups": [_as_group(group) for group in groups]})
            return
        for group in groups:
            echo("the same file" if group.exact else "nearly the same")
            for row in group.rows:
                first = None if group.exact else group.copy_of.get(row.id)
                echo(f"  {row.id:>8}  {row.path}{'' if first is None else f'  (the same file as {first})'}")
        rows = sum(len(group.rows) for group in groups)
        echo(f"{counted(len(groups), 'group')}, {counted(rows, 'row')} of {len(gallery):,}")


def _as_group(group: Group) -> dict[str, Any]:
    firsts = group.copy_of
    rows = [{**_as_row(row), "copy_of": firsts.get(row.id)} for row in group.rows]
    return {"exact": group.exact, "rows": rows}


def _as_row(row: GalleryItem) -> dict[str, Any]:
    return {"id": row.id, "path": row.path, "label": row.label, "metadata": dict(row.metadata)}


def _how(gallery: Gallery, k: int, limit: float | None, filters: list[str] | None) -> list[str]:
    """How was searched, a few words each."""
    words = [f"at most {counted(k, 'answer')}"]
    if limit is not None:
        on = f" (calibrated on {gallery.about.calibrated_on})" if limit == gallery.about.own_threshold else ""
        words.append(f"cosine from {limit:.3f}{on}")
    return [*words, *(filters or ())]


def _as_tree(gallery: Gallery, queries: list[Any], found: list[SearchResult], k: int, filter: Any) -> dict[str, Any]:
    limit = found[0].threshold
    return {
        "gallery": str(gallery.location),
        "fingerprint": gallery.about.fingerprint,
        "rows": len(gallery),
        "k": k,
        "filter": filter,
        "threshold": limit,
        "calibrated": limit is not None and limit == gallery.about.own_threshold,
        "calibrated_on": gallery.about.calibrated_on,
        "queries": [
            {
                "query": query if isinstance(query, int) else str(query),
                "exact": each.exact,
                "hits": [{"score": round(hit.score, 6), **_as_row(hit)} for hit in each],
                "same": [_as_row(hit) for hit in each.same],
            }
            for query, each in zip(queries, found, strict=True)
        ],
    }


def _as_text(query: Any, found: SearchResult) -> str:
    name = f"row {query}" if isinstance(query, int) else str(query)
    lines = [f"{name}  ({'exact' if found.exact else 'approximate'})"]
    lines += [f"  the same file: {hit.id}  {hit.path}" for hit in found.same]
    for hit in found:
        words = [hit.path] if hit.label is None else [hit.label, hit.path]
        lines.append(f"  {hit.score:6.3f}  {hit.id:>8}  {'  '.join(words)}")
    return "\n".join(lines if found else [*lines, "  nothing"])
