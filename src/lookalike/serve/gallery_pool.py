"""One gallery, used from an event loop: searched, read and changed at the same time.

The pool opens the gallery once for each kind of work, in a thread of its own: searches, reads of items, counts of
labels, and changes do not wait for one another. A gallery is opened when it is first needed, closed when it fails, and
opened again by the next call, so the service recovers when the gallery does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError, LookalikeError
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.query import (
    NoDirectionError,
    NotCalibratedError,
    QueryLike,
    QueryVector,
    Threshold,
    UnknownItemError,
    check_fingerprint,
)
from lookalike.gallery.store.base import FailedFile, GalleryInfo, GalleryItem, NewItem, ReplacedError, SearchResult
from lookalike.gallery.store.location import PostgresLocation, parse_location
from lookalike.gallery.vote import NoLabelsError, Vote
from lookalike.image import dhash
from lookalike.serve.decoding import UPLOAD_PREFIX, Upload
from lookalike.serve.errors import GalleryFailedError, RefusedError, overloaded
from lookalike.serve.schemas import AddedItem

CHECK_SECONDS = 5.0  # that a gallery may take to answer a health check
CHECK_INTERVAL = 1.0  # seconds for which the result of a health check, or the gallery's calibration, holds
WRITER_IDLE_SECONDS = 5.0  # without changes, after which the writer is closed; closing renews the index
MIN_FREE_BYTES = 2**20  # on the gallery's disk; with less, the service is not ready
ITEM_BYTES = 200  # of an item in a response, besides its metadata, name and label

Job = Literal["search", "read", "count", "write"]
T = TypeVar("T")

log = logging.getLogger(__name__)


class GalleryPool:
    """The open galleries of a service, one for each job.

    Args:
        location: of the gallery, as for `Gallery.open`.
        fingerprint: of the model that makes the vectors of queries. A gallery of another model is refused.
        dim: length of these vectors.
        max_waiting: calls that wait for each job, at most; beyond, the service is overloaded.
        writable: whether items may be changed.
        max_answer_bytes: size of the items in a response, about.
        on_other_model: called, in a thread of the pool, when the gallery turns out to have got another model; None: it
            is an error that lasts.
    """

    def __init__(
        self,
        location: str,
        fingerprint: str,
        dim: int,
        *,
        max_waiting: int,
        writable: bool,
        max_answer_bytes: int = 4 * 2**20,
        on_other_model: Callable[[], None] | None = None,
    ) -> None:
        self._location = location
        self._parsed_location = parse_location(location)
        self._fingerprint, self._max_waiting, self._max_answer_bytes = fingerprint, max_waiting, max_answer_bytes
        jobs: tuple[Job, ...] = ("search", "read", "count", "write") if writable else ("search", "read", "count")
        self._threads = {job: ThreadPoolExecutor(1, thread_name_prefix=f"lookalike-{job}") for job in jobs}
        self._galleries: dict[Job, Gallery] = {}  # each is used only in the thread of its job
        self._failures: dict[Job, str] = {}  # of the last call, where it failed
        self._waiting: Counter[Job] = Counter()
        self._refreshed: dict[Job, float] = {}  # when the calibration was last read
        self._on_other_model = on_other_model
        self._is_warm = False
        self._probe = np.full(dim, dim**-0.5, np.float32)
        self._check_lock = asyncio.Lock()
        self._checked, self._reasons = -CHECK_INTERVAL, list[str]()
        self._writer_timer: asyncio.TimerHandle | None = None

    def warm_up(self) -> None:
        """Open the gallery and search once, so that the first request does not read the index from the disk.

        Raises:
            InputError: the gallery cannot be used, or another model made its vectors.
        """
        self._search_probe(self._open("search"))
        len(self._open("read"))
        self._is_warm = True

    def close(self) -> None:
        """Finish the calls that wait, and close the galleries."""
        if self._writer_timer is not None:
            self._writer_timer.cancel()
        for job, thread in self._threads.items():
            thread.submit(self._close, job, renew_index=False)
        for thread in self._threads.values():
            thread.shutdown(wait=True)

    async def search(
        self,
        query: QueryLike,
        k: int,
        *,
        labels: Sequence[str],
        threshold: Threshold,
        exact: bool,
        rerank: int | None = None,
    ) -> SearchResult:
        """Return the items nearest to vectors or items; see `Gallery.search`.

        Raises:
            RefusedError: 404, unknown item; 422, the gallery is not calibrated, the query has no direction, or the
                response is too large; 503.
        """

        def work(gallery: Gallery) -> SearchResult:
            filter = {"label": list(labels)} if labels else None
            if threshold == "calibrated":
                self._refresh_calibration("search", gallery)
            try:
                (result,) = gallery.search([query], k, filter=filter, threshold=threshold, exact=exact, rerank=rerank)
            except UnknownItemError as error:
                raise RefusedError(404, error.message, "Search results give the ids.") from None
            except NoDirectionError:
                raise RefusedError(422, "the images cancel each other out.", "Give others, or less weight.") from None
            except NotCalibratedError as error:
                raise RefusedError(422, "threshold: the gallery is not calibrated.", error.remedy) from None
            self._check_size([*result.same, *result])
            return result

        return await self._run("search", work)

    async def vote(
        self, queries: Sequence[QueryVector], k: int, *, neighbours: int, threshold: Threshold
    ) -> list[Vote]:
        """Label images by a vote among their nearest labelled items; see `Gallery.predict`.

        Raises:
            RefusedError: 409, no item has a label; 422, the gallery is not calibrated, or the response is too large;
                503.
        """

        def work(gallery: Gallery) -> list[Vote]:
            if threshold == "calibrated":
                self._refresh_calibration("search", gallery)
            try:
                votes = gallery.predict(list(queries), k, neighbours=neighbours, threshold=threshold)
            except NoLabelsError as error:
                raise RefusedError(409, "no item of the gallery has a label.", error.remedy) from None
            except NotCalibratedError as error:
                raise RefusedError(422, "threshold: the gallery is not calibrated.", error.remedy) from None
            if sum(_label_bytes(each.label) for one in votes for each in one) > self._max_answer_bytes:
                raise self._too_large("Ask for fewer labels, k, or send fewer images.")
            return votes

        return await self._run("search", work)

    async def item(self, id: int) -> GalleryItem:
        """Return an item.

        Raises:
            RefusedError: 404, unknown item; 422, it is too large for a response; 503.
        """

        def work(gallery: Gallery) -> GalleryItem:
            (item,) = gallery.store.get([id])
            if item is None:
                raise _unknown_item(id)
            self._check_size([item])
            return item

        return await self._run("read", work)

    async def thumbnail(self, id: int) -> bytes:
        """Return the small JPEG of an item.

        Raises:
            RefusedError: 404, unknown item, or it has no thumbnail; 503.
        """
        data = await self._run("read", lambda gallery: gallery.store.thumbnail(id))
        if not data:
            raise RefusedError(404, f"there is no item {id}, or it has no thumbnail.", "Search results give the ids.")
        return data

    async def add(self, uploads: Sequence[Upload], vectors: NDArray[np.float32], label: str | None) -> list[AddedItem]:
        """Store images. They are on the disk when this returns.

        Args:
            uploads: the images. A file that is in the gallery already is not added again.
            vectors: of the images, (N, D) float32, unit length.
            label: of the new items.

        Raises:
            RefusedError: 403, the service is read-only; 503.
        """
        hashes = dhash(np.stack([upload.pixels for upload in uploads])).tolist()

        def work(gallery: Gallery) -> list[AddedItem]:
            known = gallery.store.by_digest([upload.digest for upload in uploads])
            new = {
                upload.digest: NewItem(upload.path, upload.digest, vector, upload.bytes, 0, label, {},
                                       upload.thumbnail, hash)
                for upload, vector, hash in zip(uploads, vectors, hashes, strict=True)
                if upload.digest not in known
            }  # fmt: skip
            ids = dict(zip(new, gallery.store.add(list(new.values())) if new else [], strict=True))
            added: dict[bytes, AddedItem] = {}
            result = []
            for upload in uploads:
                if (item := known.get(upload.digest)) is not None:
                    result.append(AddedItem(id=item.id, added=False, label=item.label))
                else:
                    is_first = upload.digest not in added
                    added[upload.digest] = AddedItem(id=ids[upload.digest], added=is_first, label=label)
                    result.append(added[upload.digest])
            return result

        return await self._change(work)

    async def remove(self, id: int) -> None:
        """Remove an item.

        Raises:
            RefusedError: 403, the service is read-only; 404, unknown item; 503.
        """

        def work(gallery: Gallery) -> None:
            if not gallery.store.remove([id]):
                raise _unknown_item(id)

        await self._change(work)

    async def summary(self, max_labels: int) -> tuple[int, GalleryInfo, list[tuple[str, int]]]:
        """Return the number of items, the gallery's model and thresholds, and its most frequent labels with their
        counts, as many as fit into a response.

        Raises:
            RefusedError: 503.
        """

        def work(gallery: Gallery) -> tuple[int, GalleryInfo, list[tuple[str, int]]]:
            self._refresh_calibration("count", gallery)
            labels = gallery.store.labels(max_labels)
            sizes = accumulate(_label_bytes(label) for label, _ in labels)
            fitting = [pair for pair, size in zip(labels, sizes, strict=True) if size <= self._max_answer_bytes]
            return len(gallery), gallery.about, fitting

        return await self._run("count", work)

    async def reasons(self) -> list[str]:
        """Why the gallery is not ready; empty if it is. Checked once a second, at most."""
        async with self._check_lock:
            if time.monotonic() - self._checked >= CHECK_INTERVAL:
                before = self._reasons
                self._reasons = await self._check()
                self._checked = time.monotonic()
                if self._reasons != before:
                    log.warning("gallery: %s", " ".join(self._reasons) or "ready again.")
        return self._reasons

    async def _check(self) -> list[str]:
        reasons: list[str] = []
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._run("search", self._search_probe, limited=False)
                await self._run("read", len, limited=False)
                if "write" in self._failures:
                    with suppress(GalleryFailedError):  # then the failure is still there
                        await self._change(_test_write)
        except TimeoutError:
            reasons.append(f"the gallery did not answer within {CHECK_SECONDS:.0f} s.")
        except GalleryFailedError as error:
            reasons.append(error.reason)
            log.debug("gallery: %s", error.detail)
        if "write" in self._failures:
            reasons.append(self._failures["write"])
        if "write" in self._threads and _is_disk_full(self._parsed_location):
            reasons.append("the gallery's disk is full.")
        return list(dict.fromkeys(reasons))

    def _search_probe(self, gallery: Gallery) -> None:
        gallery.search(self._probe, 1)

    async def _run(self, job: Job, work: Callable[[Gallery], T], *, limited: bool = True) -> T:
        """Run `work` with the gallery of a job, in the job's thread.

        Args:
            job: which gallery.
            work: may raise `RefusedError`, which does not count as a failure of the gallery.
            limited: whether to refuse the call if too many wait.

        Raises:
            GalleryFailedError: the gallery is gone, damaged, full, of another model, or does not answer.
            RefusedError: 503, too many calls wait.
        """
        if limited and self._waiting[job] >= self._max_waiting:
            raise overloaded("max_waiting", self._max_waiting)
        self._waiting[job] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads[job], self._call, job, work)
        finally:
            self._waiting[job] -= 1

    async def _change(self, work: Callable[[Gallery], T]) -> T:
        """Run `work` with the writer. It is finished even if the request is cancelled."""
        if "write" not in self._threads:
            raise RefusedError(403, "this service is read-only.", "Start it with a write key to change items.")
        if self._writer_timer is not None:
            self._writer_timer.cancel()
        try:
            return await asyncio.shield(self._run("write", work))
        finally:
            self._writer_timer = asyncio.get_running_loop().call_later(WRITER_IDLE_SECONDS, self._close_idle_writer)

    def _close_idle_writer(self) -> None:
        with suppress(RuntimeError):  # the pool is closed
            self._threads["write"].submit(self._close, "write")

    def _call(self, job: Job, work: Callable[[Gallery], T]) -> T:
        try:
            try:
                result = work(self._open(job))
            except ReplacedError:  # another gallery is at this location now
                self._close(job)
                result = work(self._open(job))
        except RefusedError:
            raise
        except (LookalikeError, OSError) as error:
            self._close(job)
            self._failures[job] = _public_message(error, self._parsed_location)
            raise GalleryFailedError(self._failures[job], str(error)) from error
        self._failures.pop(job, None)
        return result

    def _open(self, job: Job) -> Gallery:
        if job not in self._galleries:
            gallery = Gallery.open(self._location, write=job == "write")
            try:
                if (
                    self._is_warm
                    and self._on_other_model is not None
                    and gallery.about.fingerprint != self._fingerprint
                ):
                    self._on_other_model()
                    raise InputError("the gallery has another model now, which is being loaded.", "Try again soon.")
                check_fingerprint(self._fingerprint, gallery.about, str(gallery.location))
            except BaseException:
                gallery.close()
                raise
            self._galleries[job] = gallery
        return self._galleries[job]

    def _refresh_calibration(self, job: Job, gallery: Gallery) -> None:
        """Read the gallery's thresholds again: another program may have calibrated it."""
        if time.monotonic() - self._refreshed.get(job, -CHECK_INTERVAL) >= CHECK_INTERVAL:
            with Gallery.open(self._location) as current:
                if current.about.fingerprint != gallery.about.fingerprint:
                    raise ReplacedError("the gallery has vectors of another model now.", "Open it again.")
                gallery.store.about = current.about
            self._refreshed[job] = time.monotonic()

    def _close(self, job: Job, *, renew_index: bool = True) -> None:
        gallery = self._galleries.pop(job, None)
        if gallery is None:
            return
        try:
            if renew_index:
                gallery.close()
            else:  # as after an error: renewing may take minutes, and the next writer does it
                gallery.store.__exit__(SystemExit, None, None)
        except (LookalikeError, OSError) as error:
            self._failures[job] = _public_message(error, self._parsed_location)

    def _check_size(self, items: Sequence[GalleryItem]) -> None:
        """Refuse a response whose items are larger than `max_answer_bytes`."""
        if sum(map(_response_bytes, items)) <= self._max_answer_bytes:
            return
        if len(items) == 1:
            message = f"item {items[0].id} has more metadata than a response may hold."
            raise self._too_large("Shorten the metadata.", message)
        raise self._too_large("Ask for fewer hits: k.")

    def _too_large(self, remedy: str, message: str = "the response would be too large.") -> RefusedError:
        return RefusedError(422, message, remedy, limit="max_answer_bytes", value=self._max_answer_bytes)


def _response_bytes(item: GalleryItem) -> int:
    """The size of an item in a response, about."""
    text = json.dumps(dict(item.metadata), ensure_ascii=False) + item.path + (item.label or "")
    return ITEM_BYTES + len(text.encode("utf-8", "surrogatepass"))


def _label_bytes(label: str) -> int:
    """The size of a label with its numbers in a response, about."""
    return ITEM_BYTES + len(label.encode("utf-8", "surrogatepass"))


def _unknown_item(id: object) -> RefusedError:
    return RefusedError(404, f"there is no item {id}.", "Search results give the ids.")


def _test_write(gallery: Gallery) -> None:
    """Write to the gallery and undo it, to see whether its disk accepts changes."""
    gallery.store.reject([FailedFile(f"{UPLOAD_PREFIX}probe", "tests whether the gallery can be written")])
    gallery.store.forget([f"{UPLOAD_PREFIX}probe"])


def _is_disk_full(location: Path | PostgresLocation) -> bool:
    if not isinstance(location, Path) or not hasattr(os, "statvfs"):
        return False
    try:
        return shutil.disk_usage(location).free < MIN_FREE_BYTES
    except OSError:
        return False


def _public_message(error: Exception, location: Path | PostgresLocation) -> str:
    """The message of an error for clients, without paths and hosts."""
    if isinstance(location, PostgresLocation):
        return "the gallery's database cannot be used."
    if isinstance(error, OSError):
        return f"the gallery cannot be used ({error.strerror or 'the disk fails'})."
    text = error.message if isinstance(error, LookalikeError) else str(error)
    for path in {str(location), str(location.absolute()), str(location.resolve())}:
        text = re.sub(rf"{re.escape(path)}(/[^\s:]*)?", "the gallery", text)
    return re.sub(r"(?<![\w.])~?/[^\s:)]+", "…", text)
