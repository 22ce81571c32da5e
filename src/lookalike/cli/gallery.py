"""`lookalike gallery`: keep a collection of images and search it by similarity."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike.cli import completion
from lookalike.cli.console import echo, print_json, progress_bar
from lookalike.cli.gallery_add import add, resumable
from lookalike.cli.gallery_options import AsJson, Filters, Ids, Location, LostItems, parse_filter, parse_metadata
from lookalike.cli.gallery_search import duplicates, search
from lookalike.errors import InputError, counted

if TYPE_CHECKING:
    from lookalike.gallery.gallery import Gallery

app = typer.Typer(
    name="gallery", help="Galleries: collections of images, searched by similarity.", no_args_is_help=True
)


@app.command("create")
def create(
    location: Location,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=completion.MODEL_HELP,
            show_default="default",
            autocompletion=completion.models,
        ),
    ] = None,
    exported: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Fill it with the output of 'gallery export' or 'embed'."),
    ] = None,
) -> None:
    """Create an empty gallery for a model, or one from an exported file, which names its model."""
    from lookalike.gallery.gallery import Gallery

    if exported is not None:
        with (
            progress_bar("reading") as progress,
            Gallery.create_from(location, exported, model, progress=progress) as gallery,
        ):
            echo(f"{gallery.location}: {counted(len(gallery), 'item')}")
        return
    with Gallery.create(location, model or "default") as gallery:
        echo(f"{gallery.location}: created for vectors of {gallery.about.dim} numbers")
        echo(f"Next: lookalike gallery add {shlex.quote(str(gallery.location))} IMAGES")


app.command("add")(add)
app.command("search")(search)


@app.command("update")
def update(
    location: Location,
    ids: Ids = None,
    filters: Filters = None,
    label: Annotated[str | None, typer.Option("--label", help="New label.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata", metavar="KEY=VALUE", help="New metadata, in place of all that an item has. Repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the label or the metadata of items, by id or filter."""
    from lookalike.gallery.gallery import Gallery

    if not ids and not filters:
        raise InputError("no items to update.", "Give --id or --filter.")
    if label is None and not metadata:
        raise InputError("nothing to change.", "Give --label or --metadata.")
    chosen, values = parse_filter(filters), parse_metadata(metadata)
    with Gallery.open(location, write=True) as gallery:
        _check_ids(gallery, ids or [])
        updated = gallery.update(ids or (), filter=chosen, label=label, metadata=values)
        if as_json:
            print_json({"gallery": str(gallery.location), "updated": updated, "items": len(gallery)})
        else:
            echo(f"{counted(updated, 'item')} updated")


@app.command("remove")
def remove(
    location: Location,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...", help="Files, or folders with all below them; they need not exist any more."
        ),
    ] = None,
    ids: Ids = None,
    filters: Filters = None,
    as_json: AsJson = False,
) -> None:
    """Remove items by path, id or filter. The image files stay."""
    from lookalike.gallery.gallery import Gallery

    if not paths and not ids and not filters:
        raise InputError("nothing to remove.", "Give paths, --id or --filter.")
    chosen = parse_filter(filters)
    with Gallery.open(location, write=True) as gallery:
        _check_ids(gallery, ids or [])
        _check_paths(gallery, paths or [])
        removed = gallery.remove(ids or (), paths=paths or (), filter=chosen)
        if as_json:
            print_json({"gallery": str(gallery.location), "removed": removed, "items": len(gallery)})
        else:
            echo(f"{counted(removed, 'item')} removed, {len(gallery):,} left")


def _check_ids(gallery: Gallery, ids: Sequence[int]) -> None:
    """Refuse ids that no item has."""
    missing = [id for id, item in zip(ids, gallery.store.get(ids), strict=True) if item is None] if ids else []
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise InputError(
            f"--id {missing[0]}{more}: the gallery has no such item; nothing was changed.",
            "Take ids from 'gallery search'.",
        )


def _check_paths(gallery: Gallery, paths: Sequence[str]) -> None:
    """Refuse paths where the gallery has neither items nor failed files."""
    from lookalike.gallery.item_paths import is_at, items_at

    missing = [path for path, ids in items_at(gallery.store, paths).items() if not ids]
    failed = [file.path for file in gallery.store.rejected()] if missing else []
    missing = [path for path in missing if not any(is_at(one, path) for one in failed)]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise InputError(
            f"{missing[0]}{more}: the gallery has no items at this path or below it; nothing was removed.",
            "Give paths as 'gallery search' prints them, or folders above them.",
        )


@app.command("calibrate")
def calibrate(location: Location, as_json: AsJson = False) -> None:
    """Find the score that 1 % of the pairs of items with different labels reach, and store it as the threshold."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(location, write=True) as gallery:
        found = gallery.calibrate()
        if as_json:
            print_json({"gallery": str(gallery.location), **asdict(found)})
            return
        echo(
            f"{gallery.location}: threshold {found.threshold:.3f}, reached by 1 % of the pairs with different labels "
            f"and {found.recall:.0%} of the pairs with the same label ({gallery.about.calibrated_on})"
        )


@app.command("reembed")
def reembed(
    location: Location,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="The new model: a folder or Hub id.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    lost: Annotated[
        LostItems,
        typer.Option(
            "--lost",
            help="Items whose files are gone, have changed, or were uploaded: stop before the switch, embed their "
            "thumbnails, or remove them.",
        ),
    ] = LostItems.stop,
    as_json: AsJson = False,
) -> None:
    """Give a gallery another model: compute all vectors anew, then replace them at once.

    The vectors are computed from the image files. The old ones serve until all are done. A stopped command can be run
    again and goes on. The calibrated threshold is forgotten.
    """
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(location, write=True) as gallery, resumable("embedded"), progress_bar("embedding") as progress:
        report = gallery.reembed(model, lost=lost.value, progress=progress)
        about = gallery.about
    removed = [{"path": file.path, "reason": file.reason} for file in report.removed]
    if as_json:
        counts = {key: getattr(report, key) for key in ("items", "embedded", "kept", "thumbnails")}
        seconds = round(report.seconds, 3)
        tree = {"gallery": str(gallery.location), "model": about.model, "fingerprint": about.fingerprint}
        print_json({**tree, "dim": about.dim, **counts, "removed": removed, "seconds": seconds})
        return
    parts = [f"{report.embedded:,} embedded"]
    parts += [f"{report.thumbnails:,} of them from thumbnails"] if report.thumbnails else []
    parts += [f"{report.kept:,} before"] if report.kept else []
    parts += [f"{counted(len(removed), 'item')} removed"] if removed else []
    echo(f"{gallery.location}: {counted(report.items, 'item')} with vectors of {about.model} ({', '.join(parts)})")
    for file in removed:
        echo(f"  {file['path']}: {file['reason']}")


@app.command("info")
def info(
    location: Location,
    list_failed: Annotated[bool, typer.Option("--failed", help="List the files that could not be read.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print facts about a gallery: number of items, model, thresholds, storage."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(location) as gallery:
        tree = gallery.info()
        files = [{"path": one.path, "reason": one.reason} for one in gallery.store.rejected()] if list_failed else []
    if as_json:
        print_json(tree | {"failed_files": files} if list_failed else tree)
        return
    model = tree["model"]
    own, of_model = tree["threshold"], model["threshold"]
    own_note, model_note = (f"1 % false matches on {one['calibrated_on']}" for one in (tree, model))
    lines = {
        "gallery": tree["gallery"],
        "items": f"{tree['items']:,}",
        "failed": counted(tree["failed"], "file"),
        "model": f"{model['location'] or 'location not known'}, {model['fingerprint'][:12]}…",
        "vectors": f"{model['dim']} numbers, from images of {model['image_size']} pixels",
        "threshold": "not calibrated" if own is None else f"{own:.3f}, {own_note}",
        "model's": "none" if of_model is None else f"{of_model:.3f}, {model_note}; not used",
        **{key: f"{value:,}" if isinstance(value, int) else str(value) for key, value in tree["store"].items()},
    }
    width = max(map(len, lines))
    for key, value in lines.items():
        echo(f"{key:<{width}}  {value}")
    for file in files:
        echo(f"  {file['path']}: {file['reason']}")


@app.command("check")
def check(
    location: Location,
    recall: Annotated[
        bool, typer.Option("--recall", help="Measure the recall of the approximate search against the exact one.")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, help="Number of items used as queries, with --recall.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of that sample.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Verify every item and index file. The exit code is 1 if there was a problem, mended or not."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(location) as gallery:
        found = gallery.check(recall, sample=sample, seed=seed)
        count = len(gallery)
        if as_json:
            problems = [asdict(problem) for problem in found.problems]
            tree = {"gallery": str(gallery.location), "items": count, "problems": problems}
            print_json(tree | {"recall_at_10": found.recall})
        else:
            for problem in found.problems:
                echo(f"{'mended' if problem.mended else 'problem'}: {problem.what}\n  {problem.remedy}")
            if found.recall is not None:
                echo(f"recall@10 of the approximate search against the exact one: {found.recall:.4f}")
            echo(f"{counted(count, 'item')}, {counted(len(found.problems), 'problem')}")
    if found.problems:
        raise typer.Exit(1)


@app.command("compact")
def compact(
    location: Location,
    discard_reembed: Annotated[
        bool,
        typer.Option("--discard-reembed", help="Also remove the vectors that a stopped 'gallery reembed' has kept."),
    ] = False,
) -> None:
    """Free the space of removed items and rebuild the index."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(location, write=True) as gallery:
        gallery.compact(discard_reembed=discard_reembed)
        echo(f"{gallery.location}: {counted(len(gallery), 'item')}")


@app.command("export")
def export(
    location: Location,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="File to write: .parquet or .lance.", show_default=False)
    ],
    float32: Annotated[bool, typer.Option("--float32", help="Vectors for tools that cannot read float16.")] = False,
) -> None:
    """Write all items to a file: ids, vectors, paths, labels, metadata, thumbnails, and the model's fingerprint."""
    from lookalike.gallery.gallery import Gallery

    with Gallery.open(location) as gallery, progress_bar("writing") as progress:
        count = gallery.export(out, precision="float32" if float32 else "float16", progress=progress)
    echo(f"{out}: {counted(count, 'item')}")


app.command("duplicates")(duplicates)
