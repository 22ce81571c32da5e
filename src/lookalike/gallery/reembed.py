"""Give a gallery another model: compute all vectors anew from the image files, then replace them at once.

The vectors in use serve until there is a new one for every item. New vectors are kept beside them, so the work can be
stopped at any moment, even by SIGKILL, and the same call continues it. Items keep their ids, labels, metadata and
thumbnails; items that are added meanwhile get their new vectors at the end.

The new vectors are computed from the image files, since a thumbnail has 192 pixels at most. An item is out of reach if
its file is gone, cannot be read or decoded, or has changed since it was added, or if it was uploaded and has no file.
By default nothing is replaced then: the caller says what happens to these items. Items are never removed for a fault
that may pass: a file that cannot be read now, or a whole folder that is gone, as if its disk were not mounted.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lookalike.concurrency import map_ordered, prefetch
from lookalike.errors import InputError, counted
from lookalike.gallery.item_files import UPLOAD_PREFIX, GoneError, load_item
from lookalike.gallery.store.base import FailedFile, GalleryInfo, GalleryItem, Store, batches
from lookalike.hardware import cores
from lookalike.image import decode
from lookalike.models.inference import single_threaded_workers
from lookalike.models.runtime import TorchRuntime

EMBED_BATCH = 64  # images in one pass of the network
QUEUED_BATCHES = 2  # between two stages
SHOWN = 5  # items out of reach that an error names
LOOKUP_BATCH = 1000  # items looked up at once

Lost = Literal["stop", "thumbnail", "remove"]
Progress = Callable[[int, int], None]


class OutOfReachError(InputError):
    """The files of items cannot be used. The new vectors of the others are kept. `files`: the items, with reasons."""

    def __init__(self, message: str, remedy: str, files: Sequence[FailedFile]) -> None:
        super().__init__(message, remedy)
        self.files = list(files)


@dataclass
class ReembedReport:
    """What happened to the items.

    Args:
        items: items of the gallery, all with a new vector.
        embedded: vectors computed by this call.
        kept: vectors that an interrupted call had computed.
        thumbnails: of the embedded, those computed from thumbnails.
        removed: items that were removed, with the reasons; they are among the gallery's failed files.
        seconds: duration.
    """

    items: int = 0
    embedded: int = 0
    kept: int = 0
    thumbnails: int = 0
    removed: list[FailedFile] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Lost(FailedFile):
    """An item out of reach. `fault`: "gone"; "passing": a fault that may pass; "final": any other one."""

    fault: Literal["gone", "passing", "final"] = "final"


@dataclass(frozen=True)
class _Batch:
    """Decoded images of items, and the items out of reach. `thumbnails`: whether an image is that of a thumbnail."""

    ids: list[int]
    pixels: list[NDArray[np.uint8]]
    thumbnails: list[bool]
    lost: dict[int, _Lost]


def reembed(
    store: Store,
    embedder: TorchRuntime,
    about: GalleryInfo,
    location: str,
    *,
    lost: Lost = "stop",
    progress: Progress | None = None,
) -> ReembedReport:
    """Compute all vectors with another model, then replace the ones in use.

    Args:
        store: open for writing.
        embedder: of the new model.
        about: of the gallery with the new model.
        location: of the gallery, for messages.
        lost: what happens to items out of reach: "stop": nothing is replaced; "thumbnail": their thumbnails are
            embedded; "remove": they are removed, and recorded among the failed files with the reason.
        progress: called with (items done, items in all); the vectors of items done are on the disk.

    Raises:
        InputError: the gallery has vectors of this model already, another process computes vectors for it, or the store
            cannot be written.
        OutOfReachError: items are out of reach, and `lost` is "stop"; or "thumbnail", and they have none; or "remove",
            and a file cannot be read now, no file below its folder can be read, or no item would be left.
    """
    if lost not in get_args(Lost):
        raise InputError(f"lost={lost!r}.", f"Give one of {', '.join(get_args(Lost))}.")
    if about.fingerprint == store.about.fingerprint:
        raise InputError(f"{location}: its vectors are those of this model already.", "Give another model.")
    start = time.monotonic()
    report = ReembedReport()
    with store.reembedding(about) as new:
        out_of_reach: dict[int, _Lost] = {}
        is_first = True
        while True:
            done = set(new.ids().tolist())  # what is kept now, whatever was added
            ids = [item.id for item in store.rows()]
            todo = [id for id in ids if id not in done and id not in out_of_reach]
            if is_first:
                report.kept = len(ids) - len(todo)
                is_first = False
            total = len(ids)
            finished = total - len(todo)
            with (
                prefetch(_decoded(store, todo, embedder, use_thumbnails=lost == "thumbnail"), QUEUED_BATCHES) as some,
                single_threaded_workers(cores() if embedder.device.type == "cpu" else 1) as threads,
            ):
                for batch, vectors in map_ordered(threads, lambda batch: _embedded(embedder, batch), some, cores() + 1):
                    if batch.ids:
                        new.add(batch.ids, vectors, batch.thumbnails)
                    out_of_reach.update(batch.lost)
                    report.embedded += len(batch.ids)
                    report.thumbnails += sum(batch.thumbnails)
                    finished += len(batch.ids) + len(batch.lost)
                    if progress is not None:
                        progress(finished, total)
            for id in _removed(store, list(out_of_reach)):  # by others
                del out_of_reach[id]
            if out_of_reach and lost != "remove":
                raise _out_of_reach(location, out_of_reach.values(), lost)
            _check_removable(store, location, out_of_reach)
            if new.switch(out_of_reach):  # no items have been added meanwhile
                break
    report.items = len(store)
    report.removed = [FailedFile(file.path, file.reason) for file in out_of_reach.values()]
    report.seconds = time.monotonic() - start
    return report


def _removed(store: Store, ids: Sequence[int]) -> list[int]:
    """Those of the ids that do not exist any more."""
    found = (zip(some, store.get(some), strict=True) for some in batches(ids, LOOKUP_BATCH))
    return [id for pairs in found for id, item in pairs if item is None]


def _decoded(store: Store, ids: Sequence[int], embedder: TorchRuntime, *, use_thumbnails: bool) -> Generator[_Batch]:
    """Read and decode the images of items."""

    def decoded(item: GalleryItem) -> tuple[NDArray[np.uint8] | _Lost, bool]:
        found = _pixels(item, embedder)
        if isinstance(found, _Lost) and use_thumbnails and (thumbnail := store.thumbnail(item.id)):
            with suppress(InputError):
                return decode(thumbnail, embedder.size, crop_mode=embedder.crop_mode, name=item.path), True
        return found, False

    with ThreadPoolExecutor(cores(), thread_name_prefix="lookalike-decode") as threads:
        for some in batches(ids, EMBED_BATCH):
            items = [item for item in store.get(some) if item is not None]  # others may be removed meanwhile
            batch = _Batch([], [], [], {})
            for item, (found, is_thumbnail) in zip(items, threads.map(decoded, items), strict=True):
                if isinstance(found, _Lost):
                    batch.lost[item.id] = found
                else:
                    batch.ids.append(item.id)
                    batch.pixels.append(found)
                    batch.thumbnails.append(is_thumbnail)
            yield batch


def _pixels(item: GalleryItem, embedder: TorchRuntime) -> NDArray[np.uint8] | _Lost:
    """The pixels of an item's file, (size, size, 3) uint8, or why they are out of reach."""
    try:
        data = load_item(item.path)
        if hashlib.sha256(data).digest() != item.digest:
            return _Lost(item.path, "has changed since it was added: run 'gallery add' first")
        return decode(data, embedder.size, crop_mode=embedder.crop_mode, name=item.path)
    except OSError as error:
        return _Lost(item.path, f"cannot be read ({error.strerror or error})", fault="passing")
    except MemoryError:
        return _Lost(item.path, "not enough memory to decode it", fault="passing")
    except InputError as error:
        reason = error.message.removeprefix(f"{item.path}: ").removesuffix(".")
        return _Lost(item.path, reason, fault="gone" if isinstance(error, GoneError) else "final")


def _embedded(embedder: TorchRuntime, batch: _Batch) -> tuple[_Batch, NDArray[np.float32]]:
    pixels = np.stack(batch.pixels) if batch.pixels else np.empty((0, embedder.size, embedder.size, 3), np.uint8)
    return _Batch(batch.ids, [], batch.thumbnails, batch.lost), embedder.embed(pixels)


def _out_of_reach(location: str, lost: Iterable[FailedFile], mode: Lost) -> OutOfReachError:
    lost = list(lost)
    what = "not the files of" if mode == "stop" else "neither the files nor thumbnails of"
    thumbnails = "embed their thumbnails (--lost thumbnail), or " if mode == "stop" else ""
    return OutOfReachError(
        f"{location}: {what} {counted(len(lost), 'item')} can be used; the old vectors stay in use. {_shown(lost)}",
        f"Bring the files back and run it again, or {thumbnails}remove these items (--lost remove).",
        lost,
    )


def _shown(lost: Sequence[FailedFile]) -> str:
    more = f"; and {len(lost) - SHOWN:,} more" if len(lost) > SHOWN else ""
    return "; ".join(f"{file.path}: {file.reason}" for file in lost[:SHOWN]) + more


# What may be removed


def _check_removable(store: Store, location: str, lost: dict[int, _Lost]) -> None:
    """Refuse to remove items whose files may well come back: acting on a passing fault would empty the gallery."""
    stays = "no item is removed, and the old vectors stay in use."
    if passing := [file for file in lost.values() if file.fault == "passing"]:
        raise OutOfReachError(
            f"{location}: the files of {counted(len(passing), 'item')} cannot be read now; {stays} {_shown(passing)}",
            "See that they can be read and run it again; or remove them: lookalike gallery remove.",
            passing,
        )
    if lost and len(lost) >= len(store):
        raise OutOfReachError(
            f"{location}: not a single file can be used; {stays} {_shown(list(lost.values()))}",
            "Is their disk mounted? Or embed the thumbnails (--lost thumbnail).",
            list(lost.values()),
        )
    folders = _unconfirmed(store, lost)
    if folders:
        files = [file for some in folders.values() for file in some]
        named = ", ".join(f"{folder} ({len(some):,})" for folder, some in list(folders.items())[:SHOWN])
        raise OutOfReachError(
            f"{location}: {counted(len(files), 'item')} are gone, and no other file of their folders can be read;"
            f" {stays} {named}{', ...' if len(folders) > SHOWN else ''}",
            "Is their disk mounted? To remove them: lookalike gallery remove GALLERY FOLDER, then run it again.",
            files,
        )


def _unconfirmed(store: Store, lost: dict[int, _Lost]) -> dict[str, list[FailedFile]]:
    """The files that are gone, by folder, of the folders in or below which no item's file can be read."""
    folders: dict[str, list[FailedFile]] = defaultdict(list)
    for file in lost.values():
        if file.fault == "gone":
            folders[os.path.dirname(file.path)].append(file)  # noqa: PTH120
    if not folders:
        return folders
    for item in store.rows():
        if item.id in lost or not any(folder in folders for folder in _folders_above(item.path)):
            continue
        try:
            load_item(item.path)
        except (OSError, InputError):
            continue
        for folder in _folders_above(item.path):
            folders.pop(folder, None)
        if not folders:
            break
    return folders


def _folders_above(path: str) -> Iterator[str]:
    if not path.startswith(UPLOAD_PREFIX):
        while (above := os.path.dirname(path)) != path:  # noqa: PTH120
            yield above
            path = above
