"""`lookalike data get`: download a data set that is known by name, check it and put it in its place."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import completion
from lookalike.cli.console import echo
from lookalike.errors import DownloadError, InputError, nearest

Report = Callable[[int, int | None], None]


def get(
    name: Annotated[
        str,
        typer.Argument(
            help="A data set that 'lookalike data list' knows, such as tiny-imagenet.",
            autocompletion=completion.data_to_get,
        ),
    ],
    into: Annotated[Path | None, typer.Option(help="The folder of all data sets, when not the usual one.")] = None,
) -> None:
    """Download a data set, check it and unpack it; it is complete or absent.

    It can be stopped at any moment; the next call goes on where this one was.
    """
    import shutil

    from lookalike.data.download import download, hold
    from lookalike.data.imports import import_dataset
    from lookalike.data.sources import SOURCES, data_home, installed

    home = into.expanduser() if into is not None else data_home()
    if name == "builtin":
        echo("builtin is drawn when it is first used: there is nothing to get.")
        return
    if (there := installed(name, home)) is not None:
        echo(f"{name} is there already, in {there}")
        return
    if name not in SOURCES:
        known = ["builtin", *SOURCES]
        raise InputError(
            f"no data set named '{name}' can be got.{nearest(name, known)}", "'lookalike data list' lists them."
        )
    if (home / name).exists():
        raise InputError(f"{home / name}: this is something else than {name}.", "Move it away, or choose --into DIR.")
    arriving = home / f".{name}.download"
    with hold(arriving):
        with _progress("downloading", in_bytes=True) as progress:
            try:
                mirror, folder = download(name, SOURCES[name], arriving, progress=progress)
            except (KeyboardInterrupt, SystemExit):
                echo("Stopped; what has arrived is kept. The same command goes on with it.", err=True)
                raise
            except DownloadError as error:
                if not SOURCES[name].by_hand:
                    raise
                raise DownloadError(error.message, SOURCES[name].by_hand) from None
        source = folder / mirror.files[0].name if len(mirror.files) == 1 else folder
        with _progress("unpacking") as progress:
            done = import_dataset(source, name, home, progress=progress)
        shutil.rmtree(arriving, ignore_errors=True)
    echo(f"{name} is in {done}")
    if mirror.remark:
        echo(mirror.remark)
    echo(f"Next: lookalike data check {shlex.quote(str(name if into is None else done))}")


@contextmanager
def _progress(what: str, *, in_bytes: bool = False) -> Iterator[Report]:
    """A bar with rate and time left on a terminal's stderr; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    amount = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
