"""`lookalike gallery add`: pictures into a gallery."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import completion
from lookalike.cli.console import AsJson, Model, Target, counted, echo, print_json, progress_bar
from lookalike.errors import InputError

if TYPE_CHECKING:
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.ingest import IngestReport
    from lookalike.gallery.ray import Cluster

Address = Annotated[
    str | None, typer.Option("--ray-address", metavar="HOST:PORT", help="Of a cluster that is there, or 'auto'.")
]


class Engine(StrEnum):
    """Where pictures are read, decoded and embedded."""

    here = "here"
    ray = "ray"


def add(
    target: Target,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders, patterns, CSV or Parquet lists, names of data sets."),
    ],
    label: Annotated[str | None, typer.Option("--label", help="What all of them are.")] = None,
    folder_labels: Annotated[bool, typer.Option(help="Label pictures in class folders by these.")] = True,
    sync: Annotated[bool, typer.Option("--sync", help="Also remove what is gone from the folders.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --sync: also what was in folders that are gone or empty now.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and keep in step with the folders.")] = False,
    engine: Annotated[Engine, typer.Option("--engine", help="Where they are embedded.")] = Engine.here,
    address: Address = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Add pictures to a gallery. What is there is skipped: when stopped, the same command goes on."""
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.ingest import EmptiedError

    if watch and engine is Engine.ray:
        raise InputError("--watch and --engine ray together.", "Watch from one machine, or add once with many.")
    if yes and (watch or not sync):
        raise InputError("--yes without --sync, or with --watch.", "It answers what --sync asks.")
    with Gallery.open(target, model, write=True) as gallery, _parting():
        if watch:
            _watch(gallery, sources, label, folder_labels, as_json)
            return
        how: dict[str, Any] = {"label": label, "folder_labels": folder_labels, "sync": sync}
        try:
            with _machines(engine, address) as cluster, progress_bar("adding") as progress:
                report = gallery.add(*sources, **how, allow_empty=yes, cluster=cluster, progress=progress)
        except EmptiedError as error:
            if as_json or not on_terminal():
                raise
            echo(error.message, err=True)
            if not typer.confirm("Remove them from the gallery?", err=True):
                raise
            report = gallery.add(*sources, **how, allow_empty=True)
        if as_json:
            print_json(_as_tree(gallery, report))
        else:
            echo(_as_text(gallery, report))


def embed(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, patterns, lists of paths, URIs.")
    ],
    into: Annotated[Path, typer.Option("--into", metavar="FOLDER", help="Of the Parquet files.")],
    model: Annotated[
        str, typer.Option("--model", help="A model folder, or its name on the Hub.", autocompletion=completion.models)
    ] = "default",
    label: Annotated[str | None, typer.Option("--label", help="What all of them are.")] = None,
    folder_labels: Annotated[bool, typer.Option(help="Label pictures in class folders by these.")] = True,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Embed pictures on a Ray cluster into Parquet files, which 'gallery create --from' reads."""
    from dataclasses import asdict

    from lookalike.data.scan import sentence
    from lookalike.gallery.parquet_shards import write_shards
    from lookalike.gallery.query import load_model
    from lookalike.gallery.ray import Cluster

    loaded, where = load_model(model)
    with Cluster(address) as cluster, _parting(), progress_bar("embedding") as progress:
        done = write_shards(
            cluster, loaded, sources, into, where=where, label=label, folder_labels=folder_labels, progress=progress
        )
    if as_json:
        print_json({"folder": str(into), **asdict(done)})
    else:
        counts = {"written": done.added, "skipped, as they are there": done.skipped, "cannot be read": done.rejected}
        echo(", ".join(f"{number:,} {words}" for words, number in counts.items() if number) or "nothing to add")
        for words in filter(None, (sentence(done.passed_over), *done.notes)):
            echo(f"  {words}")
        echo(f"Next: lookalike gallery create GALLERY --from {shlex.quote(str(into))}")


def on_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextmanager
def _machines(engine: Engine, address: str | None) -> Iterator[Cluster | None]:
    """Those that embed; None: this one."""
    if engine is Engine.here:
        if address is not None:
            raise InputError("--ray-address without --engine ray.", "Add --engine ray.")
        yield None
        return
    from lookalike.gallery.ray import Cluster

    with Cluster(address) as cluster:
        yield cluster


def _watch(gallery: Gallery, folders: list[str], label: str | None, folder_labels: bool, as_json: bool) -> None:
    """Until Ctrl-C: a line for every look that changed something, and for every folder that is not there any more."""

    def on_report(report: IngestReport) -> None:
        if report.added or report.replaced or report.removed or report.relabelled or report.faults:
            if as_json:
                print_json(_as_tree(gallery, report), indent=None)
            else:
                echo(_as_text(gallery, report))

    def on_missing(error: InputError) -> None:
        echo(f"{error.message}\n  {error.remedy}", err=True)

    echo(f"watching {', '.join(folders)}; stop with Ctrl-C", err=True)
    gallery.watch(*folders, label=label, folder_labels=folder_labels, on_report=on_report, on_missing=on_missing)


@contextmanager
def _parting() -> Iterator[None]:
    """When a signal ends the work, say that nothing is lost."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        echo("stopped; what was added is kept, and the same command goes on", err=True)
        raise


def _as_tree(gallery: Gallery, report: IngestReport) -> dict[str, Any]:
    keys = ("added", "replaced", "skipped", "rejected", "reused", "relabelled", "removed", "passed_over", "notes")
    return {
        "gallery": str(gallery.location),
        "rows": len(gallery),
        **{key: getattr(report, key) for key in keys},
        "faults": [{"path": one.path, "reason": one.reason} for one in report.faults],
        "seconds": round(report.seconds, 3),
    }


def _as_text(gallery: Gallery, report: IngestReport) -> str:
    """One line; one for files of other kinds; one for each file that was found unreadable now; of many, the first."""
    from lookalike.data.scan import sentence

    counts = {
        "added": report.added,
        "replaced": report.replaced,
        "skipped, as they are there": report.skipped,
        "labelled": report.relabelled,
        "cannot be read": report.rejected,
        "removed, as their files are gone": report.removed,
    }
    said = ", ".join(f"{number:,} {words}" for words, number in counts.items() if number) or "nothing to add"
    rate = (report.added + report.replaced) / report.seconds if report.seconds > 0 else 0
    speed = f" ({rate:,.0f} pictures/s)" if rate >= 1 else ""
    lines = [f"{said}{speed}; {counted(len(gallery), 'row')}"]
    lines += [f"  {words}" for words in (sentence(report.passed_over), *report.notes) if words]
    lines += [f"  {one.path}: {one.reason}" for one in report.faults]
    if report.rejected > len(report.faults):
        lines.append(f"All of them: lookalike gallery info {shlex.quote(str(gallery.location))} --rejected")
    return "\n".join(lines)
