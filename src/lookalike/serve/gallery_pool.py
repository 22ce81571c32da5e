"""The gallery as the service holds it: searched, shown and changed at the same time, and well again by itself.

It has four handles: for searches, for rows and thumbnails, for counting labels, and for changes. The last one is
closed when nothing was changed for a while, so that another program may write to a gallery in a folder.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import LookalikeError
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.query import QueryVector, Threshold, calibrate_first, check_fingerprint
from lookalike.gallery.store.base import (
    FailedFile,
    Filter,
    GalleryInfo,
    GalleryItem,
    NewItem,
    ReplacedError,
    SearchResult,
)
from lookalike.gallery.store.location import PostgresLocation, parse_location
from lookalike.image import dhash
from lookalike.serve.decoding import UPLOADED, Upload
from lookalike.serve.errors import FailingError, RefusedError, overloaded

IDLE = 5.0  # seconds without a change, after which others may write


LEAST_FREE = 2**20  # bytes of the gallery's disk, below which nothing can be added


PATIENCE = 5.0  # seconds that a gallery may take to say that it is well


FRESH = 1.0  # seconds for which that holds


HIT = 200  # bytes of a row in an answer, beside its metadata, name and label


log = logging.getLogger(__name__)


T = TypeVar("T")


class GalleryPool:
    """A gallery, asked from the event loop. Everything it does is done in the threads of its handles.

    Args:
        target: as for `Gallery.open`.
        fingerprint: of the model that makes the queries' vectors.
        dim: numbers of these.
        most: calls that wait for each handle; beyond, the service is overloaded.
        writes: whether it may be changed.
        most_bytes: of an answer, about.
    """

    def __init__(
        self, target: str, fingerprint: str, dim: int, *, most: int, writes: bool, most_bytes: int = 4 * 2**20
    ) -> None:
        self._most_bytes = most_bytes
        self._search, self._look, self._count = (PooledGallery(target, fingerprint, most) for _ in range(3))
        self._write = PooledGallery(target, fingerprint, most, write=True) if writes else None
        self._probe = np.full(dim, dim**-0.5, np.float32)
        self._checking = asyncio.Lock()
        self._checked, self._reasons = -FRESH, list[str]()
        self._resting: asyncio.TimerHandle | None = None

    def warm_up(self) -> None:
        """Open it and search once, in this thread, before the first request: what a search needs is read from the disk.

        Raises:
            FailingError: it cannot be used.
        """
        self._search.use(self._one_search)
        self._look.use(len)

    def close(self) -> None:
        """Finish what waits, and close."""
        if self._resting is not None:
            self._resting.cancel()
        for handle in (self._search, self._look, self._count, self._write):
            if handle is not None:
                handle.close()

    async def search(
        self,
        query: NDArray[np.float32] | int,
        k: int,
        *,
        labels: Sequence[str],
        threshold: Threshold,
        exact: bool,
        digest: bytes | None = None,
    ) -> SearchResult:
        """The items nearest to a vector (D,) or item. `digest` is the SHA-256 of the vector's file: items of the same
        file are in `SearchResult.same`.

        Raises:
            RefusedError: 404, no such row; 422, no calibrated threshold, or too large an answer; 503.
        """
        filter: Filter | None = {"label": list(labels)} if labels else None

        def work(gallery: Gallery) -> SearchResult:
            if threshold == "calibrated" and gallery.about.own_threshold is None:
                raise RefusedError(422, "threshold: the gallery has no calibrated one.", calibrate_first(gallery.about))
            if isinstance(query, int):
                _known(gallery, query)
            asked = query if isinstance(query, int) else QueryVector(query, digest=digest)
            found = gallery.search(asked, k, filter=filter, threshold=threshold, exact=exact)
            self._check_size([*found.same, *found])
            return found

        return await self._search.run(work)

    async def row(self, id: int) -> GalleryItem:
        """A row.

        Raises:
            RefusedError: 404, there is none; 422, it is too large an answer; 503.
        """

        def work(gallery: Gallery) -> GalleryItem:
            row = _known(gallery, id)
            self._check_size([row])
            return row

        return await self._look.run(work)

    async def thumbnail(self, id: int) -> bytes:
        """A row's small JPEG.

        Raises:
            RefusedError: 404, there is no such row, or it has none; 503.
        """

        def work(gallery: Gallery) -> bytes:
            _known(gallery, id)
            found = gallery.store.thumbnail(id)
            if not found:
                raise RefusedError(404, f"item {id} has no thumbnail.")
            return found

        return await self._look.run(work)

    async def add(
        self, uploads: Sequence[Upload], vectors: NDArray[np.float32], label: str | None
    ) -> list[tuple[int, bool, str | None]]:
        """Keep pictures: of each its id, whether it is new, and its label. On the disk when this returns.

        Args:
            uploads: the pictures.
            vectors: theirs, (n, D) float32 of length 1.
            label: of the new ones.

        Raises:
            RefusedError: 403, nothing may be changed; 503.
        """
        looks = dhash(np.stack([one.pixels for one in uploads])).tolist()

        def work(gallery: Gallery) -> list[tuple[int, bool, str | None]]:
            known = gallery.store.by_digest([one.digest for one in uploads])
            new = {
                one.digest: NewItem(f"{UPLOADED}{one.digest.hex()}", one.digest, vector, one.bytes, 0, label, {},
                                   one.thumbnail, look)
                for one, vector, look in zip(uploads, vectors, looks, strict=True) if one.digest not in known
            }  # fmt: skip
            ids = dict(zip(new, gallery.store.add(list(new.values())), strict=True)) if new else {}
            answers: list[tuple[int, bool, str | None]] = []
            for one in uploads:
                row, first = known.get(one.digest), ids.get(one.digest)
                if row is not None:
                    answers.append((row.id, False, row.label))
                else:
                    assert first is not None
                    answers.append((first, first not in {id for id, _, _ in answers}, label))
            return answers

        return await self._change(work)

    async def remove(self, id: int) -> None:
        """Remove a row.

        Raises:
            RefusedError: 403, nothing may be changed; 404, there is none; 503.
        """

        def work(gallery: Gallery) -> None:
            if not gallery.store.remove([id]):
                raise _no_item(id)

        await self._change(work)

    async def facts(self, most: int) -> tuple[int, GalleryInfo, list[tuple[str, int]]]:
        """Rows, what the gallery was made with and calibrated on, and the most frequent labels with their rows,
        as far as an answer may go.

        Raises:
            RefusedError: 503.
        """

        def work(gallery: Gallery) -> tuple[int, GalleryInfo, list[tuple[str, int]]]:
            labels = gallery.store.labels(most)
            sizes = accumulate(HIT + len(label.encode("utf-8", "surrogatepass")) for label, _ in labels)
            fitting = [pair for pair, size in zip(labels, sizes, strict=True) if size <= self._most_bytes]
            return len(gallery), gallery.about, fitting

        return await self._count.run(work)

    async def rows(self) -> int:
        """How many there are.

        Raises:
            RefusedError: 503.
        """
        return await self._look.run(len)

    async def reasons(self) -> list[str]:
        """Why it cannot be used as it should; an empty list where it can. Looked at anew once a second, at most."""
        async with self._checking:
            if time.monotonic() - self._checked >= FRESH:
                before = self._reasons
                self._reasons = await self._find_reasons()
                self._checked = time.monotonic()
                if self._reasons != before:
                    log.warning("gallery: %s", " ".join(self._reasons) or "well again")
        return self._reasons

    async def _find_reasons(self) -> list[str]:
        found: list[str] = []
        try:
            async with asyncio.timeout(PATIENCE):
                await self._search.run(self._one_search, waits=False)
                await self._look.run(len, waits=False)
                if self._write is not None and self._write.failing:
                    with suppress(FailingError):  # what it says is in `failing`
                        await self._change(_write_and_undo)
        except TimeoutError:
            found.append(f"the gallery did not answer within {PATIENCE:.0f} s.")
        except FailingError as error:
            found.append(error.reason)
            log.debug("gallery: %s", error.detail)
        if self._write is not None:
            found += [self._write.failing] if self._write.failing else []
            found += ["the gallery's disk is full."] if _is_full(self._write.place) else []
        return list(dict.fromkeys(found))

    async def _change(self, work: Callable[[Gallery], T]) -> T:
        if self._write is None:
            raise RefusedError(403, "nothing may be added or removed here.", "Start the service with a write key.")
        if self._resting is not None:
            self._resting.cancel()
        try:
            return await asyncio.shield(self._write.run(work))
        finally:
            self._resting = asyncio.get_running_loop().call_later(IDLE, self._rest)

    def _rest(self) -> None:
        if self._write is not None:
            task = asyncio.ensure_future(self._write.rest())
            task.add_done_callback(lambda done: done.exception())

    def _check_size(self, rows: Sequence[GalleryItem]) -> None:
        if sum(map(_size, rows)) <= self._most_bytes:
            return
        words = ("the answer would be too large, with its metadata.", "Ask for fewer: k.")
        if len(rows) == 1:
            words = (f"item {rows[0].id} has more metadata than an answer may.", "Shorten them.")
        raise RefusedError(422, *words, limit="max_answer_bytes", value=self._most_bytes)

    def _one_search(self, gallery: Gallery) -> None:
        gallery.search(self._probe, 1)


def _size(row: GalleryItem) -> int:
    """Bytes of a row in an answer, about."""
    words = json.dumps(dict(row.metadata), ensure_ascii=False) + row.path + (row.label or "")
    return HIT + len(words.encode("utf-8", "surrogatepass"))


def _known(gallery: Gallery, id: int) -> GalleryItem:
    (row,) = gallery.store.get([id])
    if row is None:
        raise _no_item(id)
    return row


def _no_item(id: int) -> RefusedError:
    return RefusedError(404, f"there is no item {id}.", "Ids are in the answers of a search.")


def _write_and_undo(gallery: Gallery) -> None:
    """A real change, small, and none when done: whether the disk takes it."""
    gallery.store.reject([FailedFile(f"{UPLOADED}probe", "to see whether this gallery can be written")])
    gallery.store.forget([f"{UPLOADED}probe"])


def _is_full(place: object) -> bool:
    if not isinstance(place, Path) or not hasattr(os, "statvfs"):
        return False
    try:
        return shutil.disk_usage(place).free < LEAST_FREE
    except OSError:
        return False


# A gallery that is opened when it is needed, given up when it fails, and opened again the next time.


class PooledGallery:
    """One way into a gallery, with its thread.

    Args:
        target: as for `Gallery.open`.
        fingerprint: of the model whose vectors are compared; a gallery of another one is refused.
        most: calls that wait for it; beyond, the service is overloaded.
        write: whether to change it.
    """

    def __init__(self, target: str, fingerprint: str, most: int, *, write: bool = False) -> None:
        self.place = parse_location(target)
        self.failing = ""
        self._target, self._fingerprint, self._most, self._write = target, fingerprint, most, write
        self._gallery: Gallery | None = None
        self._calls = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"lookalike-{'write' if write else 'read'}")

    async def run(self, work: Callable[[Gallery], T], *, waits: bool = True) -> T:
        """Do something with the gallery, in the handle's thread.

        Args:
            work: what to do. It may raise `RefusedError`, which says nothing against the gallery.
            waits: whether to refuse when too many wait.

        Raises:
            FailingError: the gallery is gone, damaged, full, another one's, or does not answer.
            RefusedError: 503, too many wait.
        """
        if waits and self._calls >= self._most:
            raise overloaded("max_waiting", self._most)
        self._calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self.use(work))
        finally:
            self._calls -= 1

    def use(self, work: Callable[[Gallery], T]) -> T:
        """Likewise, in the caller's thread, which must be the only one. Where another gallery is at its place now,
        it is done with that one.
        """
        try:
            try:
                result = work(self._opened())
            except ReplacedError:
                self._let_go()
                result = work(self._opened())
        except RefusedError:
            raise
        except (LookalikeError, OSError) as error:
            self._let_go()
            self.failing = without_places(error, self.place)
            raise FailingError(self.failing, str(error)) from error
        self.failing = ""
        return result

    async def rest(self) -> None:
        """Close the gallery until it is needed again"""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)

    def close(self) -> None:
        """Finish what waits, close the gallery as it is, end the thread."""
        self._thread.submit(self._let_go, tidy=False)
        self._thread.shutdown(wait=True)

    def _opened(self) -> Gallery:
        if self._gallery is None:
            gallery = Gallery.open(self._target, write=self._write)
            try:
                check_fingerprint(self._fingerprint, gallery.about, "the gallery")
            except BaseException:
                gallery.close()
                raise
            self._gallery = gallery
        return self._gallery

    def _let_go(self, *, tidy: bool = True) -> None:
        gallery, self._gallery = self._gallery, None
        if gallery is None:
            return
        try:
            if tidy:
                gallery.close()
            else:  # as after an error: a writer's tidying may take minutes, and the next writer does it
                gallery.store.__exit__(SystemExit, None, None)
        except (LookalikeError, OSError) as error:
            self.failing = without_places(error, self.place)


def without_places(error: Exception, place: Path | PostgresLocation) -> str:
    """What an error says, for who asks over the network: without paths and hosts."""
    if isinstance(place, PostgresLocation):
        return "the gallery's database cannot be used."
    if isinstance(error, OSError):
        return f"the gallery cannot be used ({error.strerror or 'the disk fails'})."
    text = error.message if isinstance(error, LookalikeError) else str(error)
    for known in {str(place), str(place.absolute()), str(place.resolve())}:
        text = re.sub(rf"{re.escape(known)}(/[^\s:]*)?", "the gallery", text)
    return re.sub(r"(?<![\w.])~?/[^\s:)]+", "…", text)
