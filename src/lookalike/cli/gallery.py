"""`lookalike gallery`: a collection of pictures, kept and searched by what they look like."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike.cli import completion
from lookalike.cli.console import AsJson, Filter, Target, counted, echo, parse_filter, print_json, progress_bar
from lookalike.cli.gallery_add import add, embed
from lookalike.cli.gallery_search import duplicates, search
from lookalike.errors import InputError

if TYPE_CHECKING:
    from lookalike.gallery.gallery import Gallery

app = typer.Typer(name="gallery", help="Galleries: pictures found by what they look like.", no_args_is_help=True)


@app.command("create")
def create(
    target: Target,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A model folder, or its name on the Hugging Face Hub.",
            show_default="default",
            autocompletion=completion.models,
        ),
    ] = None,
    exported: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Fill it with what 'export' or 'embed' wrote.")
    ] = None,
) -> None:
    """Make a gallery: an empty one for a model, or one out of an exported file, which names its model."""
    from lookalike.gallery.gallery import Gallery

    if exported is not None:
        with (
            progress_bar("reading") as progress,
            Gallery.create_from(target, exported, model, progress=progress) as gallery,
        ):
            echo(f"{gallery.location}: {counted(len(gallery), 'row')}")
        return
    with Gallery.create(target, model or "default") as gallery:
        echo(f"{gallery.location}: for vectors of {gallery.about.dim} numbers")
        echo(f"Next: lookalike gallery add {shlex.quote(str(gallery.location))} PICTURES")


app.command("add")(add)
app.command("embed")(embed)


@app.command("remove")
def remove(
    target: Target,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Files, or folders for all below them, also ones that are gone."),
    ] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="A row's id; repeatable.")] = None,
    filters: Filter = None,
    as_json: AsJson = False,
) -> None:
    """Remove rows from a gallery, by path, id or filter; the files themselves stay."""
    from lookalike.gallery.gallery import Gallery

    if not paths and not ids and not filters:
        raise InputError("nothing to remove.", "Give paths, --id or --filter.")
    chosen = parse_filter(filters)
    with Gallery.open(target, write=True) as gallery:
        _check_paths(gallery, paths or [])
        removed = gallery.remove(ids or (), paths=paths or (), filter=chosen)
        if as_json:
            print_json({"gallery": str(gallery.location), "removed": removed, "rows": len(gallery)})
        else:
            echo(f"{counted(removed, 'row')} removed, {len(gallery):,} left")


def _check_paths(gallery: Gallery, paths: list[str]) -> None:
    """Refuse paths that nothing in the gallery has, neither a row nor a rejected file."""
    from lookalike.gallery.row_paths import is_at, rows_at

    missing = [path for path, ids in rows_at(gallery.store, paths).items() if not ids]
    rejected = [one.path for one in gallery.store.rejected()] if missing else []
    missing = [path for path in missing if not any(is_at(one, path) for one in rejected)]
    if missing:
        more = f", nor below {len(missing) - 1:,} other paths" if len(missing) > 1 else ""
        raise InputError(
            f"{missing[0]}: the gallery has no row of this path or below it{more}; nothing was removed.",
            "Give paths as 'gallery search' prints them, or the folders they lie in.",
        )


app.command("search")(search)


@app.command("calibrate")
def calibrate(target: Target, as_json: AsJson = False) -> None:
    """Find the threshold of a gallery by its own labels: what 1 % of the pairs of different labels reach."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(target, write=True) as gallery:
        found = gallery.calibrate()
        if as_json:
            print_json({"gallery": str(gallery.location), **asdict(found)})
            return
        echo(
            f"{gallery.location}: threshold {found.threshold:.3f}, which 1 % of the pairs of different labels "
            f"reach and {found.found:.0%} of those of one label ({gallery.about.calibrated_on})"
        )


@app.command("info")
def info(
    target: Target,
    rejected: Annotated[bool, typer.Option("--rejected", help="List the files that could not be read.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a gallery holds: rows, its model, its store."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(target) as gallery:
        tree = gallery.info()
        files = [{"path": one.path, "reason": one.reason} for one in gallery.store.rejected()] if rejected else []
    if as_json:
        print_json(tree | {"files": files} if rejected else tree)
        return
    model = tree["model"]
    own, of_model = tree["threshold"], model["threshold"]
    ours, others = (f"1 % false matches on {one['calibrated_on']}" for one in (tree, model))
    known = {
        "threshold": "not calibrated" if own is None else f"{own:.3f}, {ours}",
        "model's": "none" if of_model is None else f"{of_model:.3f}, {others}; not used",
    }
    lines = {
        "gallery": tree["gallery"],
        "rows": f"{tree['rows']:,}",
        "rejected": counted(tree["rejected"], "file"),
        "model": f"{model['place'] or 'place not known'}, {model['fingerprint'][:12]}…",
        "vectors": f"{model['dim']} numbers, of pictures of {model['image_size']} pixels",
        **known,
        **{key: f"{value:,}" if isinstance(value, int) else str(value) for key, value in tree["store"].items()},
    }
    width = max(map(len, lines))
    for key, value in lines.items():
        echo(f"{key:<{width}}  {value}")
    for file in files:
        echo(f"  {file['path']}: {file['reason']}")


@app.command("check")
def check(
    target: Target,
    recall: Annotated[
        bool, typer.Option("--recall", help="Compare the approximate search with the exact one.")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, help="Rows to search for, with --recall.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which ones.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Verify every item and index file. The exit code is 1 if there was a problem, mended or not."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(target) as gallery:
        found = gallery.check(recall, sample=sample, seed=seed)
        rows = len(gallery)
        if as_json:
            problems = [asdict(problem) for problem in found.problems]
            print_json(
                {"gallery": str(gallery.location), "rows": rows, "problems": problems, "recall_at_10": found.recall}
            )
        else:
            for problem in found.problems:
                echo(f"{'mended' if problem.mended else 'problem'}: {problem.what}\n  {problem.remedy}")
            if found.recall is not None:
                echo(f"recall@10 of the approximate search against the exact one: {found.recall:.4f}")
            echo(f"{counted(rows, 'row')}, {counted(len(found.problems), 'problem')}")
    if found.problems:
        raise typer.Exit(1)


@app.command("compact")
def compact(target: Target) -> None:
    """Give back the space of removed rows, and make the derived files anew."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(target, write=True) as gallery:
        gallery.compact()
        echo(f"{gallery.location}: {counted(len(gallery), 'row')}")


@app.command("export")
def export(
    target: Target,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .parquet or .lance.", show_default=False)],
    float32: Annotated[bool, typer.Option("--float32", help="Vectors for tools that do not know float16.")] = False,
) -> None:
    """Write all rows to a file: ids, vectors, paths, labels, metadata, thumbnails, and the model's fingerprint."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(target) as gallery, progress_bar("writing") as progress:
        rows = gallery.export(out, precision="float32" if float32 else "float16", progress=progress)
    echo(f"{out}: {counted(rows, 'row')}")


app.command("duplicates")(duplicates)
