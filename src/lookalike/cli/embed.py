"""`lookalike embed`: the vectors of images as Parquet files, without a gallery."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import completion
from lookalike.cli.console import echo, print_json, progress_bar
from lookalike.cli.gallery_add import machines, resumable
from lookalike.cli.gallery_options import AsJson, Backend, BackendOption, FolderLabels, Label, RayAddress, Sources


def embed(
    sources: Sources,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the Parquet files.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help=completion.MODEL_HELP, autocompletion=completion.models),
    ] = "default",
    label: Label = None,
    folder_labels: FolderLabels = True,
    backend: BackendOption = Backend.local,
    address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Compute the vectors of images and write them as Parquet files, with paths, labels and thumbnails.

    Images that are in the folder already are skipped, so a stopped command can be run again.
    'gallery create --from' makes a gallery of the folder.
    """
    from lookalike.data.scan import sentence
    from lookalike.gallery.parquet_shards import write_shards
    from lookalike.gallery.query import load_model

    with machines(backend, address) as cluster:
        loaded, location = load_model(model)
        with resumable(), progress_bar("embedding") as progress:
            report = write_shards(
                loaded,
                sources,
                out,
                location=location,
                label=label,
                folder_labels=folder_labels,
                cluster=cluster,
                progress=progress,
            )
    if as_json:
        print_json({"folder": str(out), **asdict(report)})
    else:
        counts = {"embedded": report.added, "skipped (unchanged)": report.skipped, "failed": report.failed}
        echo(", ".join(f"{number:,} {words}" for words, number in counts.items() if number) or "nothing to embed")
        for words in filter(None, (sentence(report.passed_over), *report.notes)):
            echo(f"  {words}")
        echo(f"Next: lookalike gallery create GALLERY --from {shlex.quote(str(out))}")
    if report.failed and not report.added and not report.skipped:
        raise typer.Exit(1)
