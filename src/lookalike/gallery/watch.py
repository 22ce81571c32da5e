"""A gallery kept in step with folders: what is new, changed and gone in them is so in the gallery soon after.

The folders are looked through again and again; what counts as changed is told by the store, as for any adding, so that
watching may be stopped and started at any time. A file that is being written waits until it has not changed for a
while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lookalike.errors import InputError
from lookalike.gallery.ingest import EmptiedError, IngestReport, Progress, ingest
from lookalike.gallery.store.base import Store
from lookalike.models.runtime import TorchRuntime

PAUSE = 2.0  # seconds between two looks, at least
SETTLE = 2.0  # seconds without a change after which a file counts as whole
SHARE = 5  # a look of one second is followed by a pause of so many, at least


def watch(
    store: Store,
    embedder: TorchRuntime,
    folders: Iterable[str | Path],
    *,
    label: str | None = None,
    folder_labels: bool = True,
    pause: float = PAUSE,
    settle: float = SETTLE,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    on_report: Callable[[IngestReport], None] | None = None,
    on_missing: Callable[[InputError], None] | None = None,
) -> None:
    """Keep a store in step with folders until told to stop, or for ever.

    Args:
        store: open for writing.
        embedder: of the store's model.
        folders: of pictures; hidden files and files that are no pictures by name are left alone.
        label: as for `lookalike.gallery.ingest.ingest`.
        folder_labels: likewise.
        pause: seconds between two looks; longer where a look takes long.
        settle: seconds for which a file must not have changed.
        stop: ends it, after the look that is under way.
        progress: likewise, within each look.
        on_report: called with the report of each look.
        on_missing: called with an error each time a folder is gone or suddenly empty. Its items stay: its disk may only
            be unplugged.

    Raises:
        InputError: a folder that is not there at the beginning or is no folder, or a store that cannot be written.
    """
    stop = stop or threading.Event()
    watched = [Path(folder).expanduser() for folder in folders]
    for folder in watched:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder.", "Only folders can be watched.")
    lost: str | None = None
    while not stop.is_set():
        start = time.monotonic()
        absent = _absent(watched)
        if absent is None:
            try:
                report = ingest(
                    store, embedder, watched, label=label, folder_labels=folder_labels, sync=True, settle=settle,
                    progress=progress,
                )  # fmt: skip
                lost = None
                if on_report is not None:
                    on_report(report)
            except EmptiedError as error:
                absent = error
        if absent is not None and lost != absent.message:
            lost = absent.message
            if on_missing is not None:
                on_missing(absent)
        stop.wait(max(pause, SHARE * (time.monotonic() - start)))


def _absent(folders: Iterable[Path]) -> InputError | None:
    for folder in folders:
        if not folder.is_dir():
            return InputError(f"{folder}: this folder is gone.", "Put it back; nothing was removed from the gallery.")
    return None
