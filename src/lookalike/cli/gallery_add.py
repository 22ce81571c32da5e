"""`lookalike gallery add`: add images to a gallery."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli.console import echo, print_json, progress_bar
from lookalike.cli.gallery_options import (
    AsJson,
    Backend,
    BackendOption,
    FolderLabels,
    Label,
    Location,
    Model,
    RayAddress,
    Sources,
)
from lookalike.errors import InputError, counted

if TYPE_CHECKING:
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.ingest import IngestReport
    from lookalike.gallery.ray import Cluster


def add(
    location: Location,
    sources: Sources,
    label: Label = None,
    folder_labels: FolderLabels = True,
    sync: Annotated[
        bool, typer.Option("--sync", help="Also remove items whose files are gone from the source folders.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --sync: also if a folder is gone or has no images left.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep running, and keep the gallery in sync with the folders.")
    ] = False,
    backend: BackendOption = Backend.local,
    address: RayAddress = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Add images to a gallery. Unchanged files are skipped, so a stopped command can be run again."""
    from lookalike.gallery.gallery import Gallery
    from lookalike.gallery.ingest import EmptiedError

    if watch and backend is Backend.ray:
        raise InputError("--watch and --backend ray cannot be combined.", "Watch with the local backend.")
    if yes and (watch or not sync):
        raise InputError("--yes is only used with --sync, and not with --watch.", "Leave it out.")
    with Gallery.open(location, model, write=True) as gallery, resumable():
        if watch:
            _watch(gallery, sources, label, folder_labels, as_json)
            return
        options: dict[str, Any] = {"label": label, "folder_labels": folder_labels, "sync": sync}
        try:
            with machines(backend, address) as cluster, progress_bar("adding") as progress:
                report = gallery.add(*sources, **options, allow_empty=yes, cluster=cluster, progress=progress)
        except EmptiedError as error:
            if as_json or not on_terminal():
                raise
            echo(error.message, err=True)
            if not typer.confirm("Remove them from the gallery?", err=True):
                raise
            report = gallery.add(*sources, **options, allow_empty=True)
        if as_json:
            print_json(_as_tree(gallery, report))
        else:
            echo(_as_text(gallery, report))
    if report.failed and report.failed == report.total and not report.removed:
        raise typer.Exit(1)


def on_terminal() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextmanager
def machines(backend: Backend, address: str | None) -> Iterator[Cluster | None]:
    """The Ray cluster that embeds; None for this machine."""
    if backend is Backend.local:
        if address is not None:
            raise InputError("--ray-address without --backend ray.", "Add --backend ray.")
        yield None
        return
    from lookalike.gallery.ray import Cluster

    with Cluster(address) as cluster:
        yield cluster


@contextmanager
def resumable(done: str = "added") -> Iterator[None]:
    """When a signal ends the work, say that nothing is lost. `done`: what happens to images."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        echo(f"stopped; what was {done} is kept, and the same command goes on", err=True)
        raise


def _watch(gallery: Gallery, folders: list[str], label: str | None, folder_labels: bool, as_json: bool) -> None:
    """Watch until Ctrl-C. Prints a report for each scan that changed something, and an error for each lost folder."""

    def on_report(report: IngestReport) -> None:
        if report.added or report.replaced or report.removed or report.relabelled or report.failed_files:
            if as_json:
                print_json(_as_tree(gallery, report), indent=None)
            else:
                echo(_as_text(gallery, report))

    def on_missing(error: InputError) -> None:
        echo(f"{error.message}\n  {error.remedy}", err=True)

    echo(f"watching {', '.join(folders)}; stop with Ctrl-C", err=True)
    gallery.watch(*folders, label=label, folder_labels=folder_labels, on_report=on_report, on_missing=on_missing)


def _as_tree(gallery: Gallery, report: IngestReport) -> dict[str, Any]:
    keys = ("added", "replaced", "skipped", "failed", "reused", "relabelled", "removed", "passed_over", "notes")
    return {
        "gallery": str(gallery.location),
        "items": len(gallery),
        **{key: getattr(report, key) for key in keys},
        "failed_files": [{"path": one.path, "reason": one.reason} for one in report.failed_files],
        "seconds": round(report.seconds, 3),
    }


def _as_text(gallery: Gallery, report: IngestReport) -> str:
    """One line of counts, one for files that are no images, one for each new failed file (the first of many)."""
    from lookalike.data.scan import sentence

    counts = {
        "added": report.added,
        "replaced": report.replaced,
        "skipped (unchanged)": report.skipped,
        "relabelled": report.relabelled,
        "failed": report.failed,
        "removed (files are gone)": report.removed,
    }
    summary = ", ".join(f"{number:,} {words}" for words, number in counts.items() if number) or "nothing to add"
    rate = (report.added + report.replaced) / report.seconds if report.seconds > 0 else 0
    speed = f" ({rate:,.0f} images/s)" if rate >= 1 else ""
    lines = [f"{summary}{speed}; {counted(len(gallery), 'item')}"]
    lines += [f"  {words}" for words in (sentence(report.passed_over), *report.notes) if words]
    lines += [f"  {one.path}: {one.reason}" for one in report.failed_files]
    if report.failed > len(report.failed_files):
        lines.append(f"All failed files: lookalike gallery info {shlex.quote(str(gallery.location))} --failed")
    return "\n".join(lines)
