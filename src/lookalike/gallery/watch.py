"""Keep a gallery in sync with folders on disk.

The folders are scanned repeatedly. The store tells what has changed, as for any `ingest`, so watching can be stopped
and started at any time. A file that is being written waits until it has not changed for a while.
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

PAUSE_SECONDS = 2.0  # between two scans, at least
SETTLE_SECONDS = 2.0  # without a change, after which a file counts as complete
PAUSE_RATIO = 5  # the pause is at least so many times as long as the scan


def watch(
    store: Store,
    embedder: TorchRuntime,
    folders: Iterable[str | Path],
    *,
    label: str | None = None,
    folder_labels: bool = True,
    pause: float = PAUSE_SECONDS,
    settle: float = SETTLE_SECONDS,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    on_report: Callable[[IngestReport], None] | None = None,
    on_missing: Callable[[InputError], None] | None = None,
) -> None:
    """Keep a store in sync with folders, until `stop` is set or for ever.

    Args:
        store: open for writing.
        embedder: of the store's model.
        folders: of images. Hidden files, and files that are no images by name, are ignored.
        label: label of all images.
        folder_labels: whether the names of class folders become labels.
        pause: seconds between two scans; longer if a scan takes long.
        settle: seconds for which a file must not have changed.
        stop: ends the watch after the current scan.
        progress: called with (files done, files in all) during each scan.
        on_report: called with the report of each scan.
        on_missing: called with an error each time a folder is gone or suddenly empty. Its items stay, since its disk
            may only be unplugged.

    Raises:
        InputError: at the start a folder does not exist, or the store cannot be written.
    """
    stop = stop or threading.Event()
    watched = [Path(folder).expanduser() for folder in folders]
    for folder in watched:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder.", "Only folders can be watched.")
    lost: str | None = None
    while not stop.is_set():
        start = time.monotonic()
        missing = _missing_folder(watched)
        if missing is None:
            try:
                report = ingest(
                    store,
                    embedder,
                    watched,
                    label=label,
                    folder_labels=folder_labels,
                    sync=True,
                    settle=settle,
                    progress=progress,
                )
                lost = None
                if on_report is not None:
                    on_report(report)
            except EmptiedError as error:
                missing = error
        if missing is not None and lost != missing.message:
            lost = missing.message
            if on_missing is not None:
                on_missing(missing)
        stop.wait(max(pause, PAUSE_RATIO * (time.monotonic() - start)))


def _missing_folder(folders: Iterable[Path]) -> InputError | None:
    for folder in folders:
        if not folder.is_dir():
            return InputError(f"{folder}: this folder is gone.", "Put it back; nothing was removed from the gallery.")
    return None
