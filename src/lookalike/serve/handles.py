"""A gallery that is opened when it is needed, given up when it fails, and opened again the next time.

A store's methods may be called from several threads, which then take turns. Here each handle has a thread of its own
instead, so that a search does not wait for a write, nor a thumbnail for a search: SQLite's readers see whole changes
while one writer goes on, and PostgreSQL has a connection for each.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lookalike.errors import LookalikeError
from lookalike.search.gallery import Gallery
from lookalike.search.places import Server, place_of
from lookalike.search.remembered import check_fingerprint
from lookalike.search.store.base import ReplacedError
from lookalike.serve.refusals import RefusedError, overloaded

T = TypeVar("T")


class FailingError(RefusedError):
    """The gallery cannot be used now: 503. `detail` is the whole message, for the log and not for who asked."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        RefusedError.__init__(self, 503, reason, "Try again later; GET /ready says when.", retry_after=5)


class Handle:
    """One way into a gallery, with its thread.

    Args:
        target: as for `Gallery.open`.
        fingerprint: of the model whose vectors are compared; a gallery of another one is refused.
        most: calls that wait for it; beyond, the service is overloaded.
        write: whether to change it.
    """

    def __init__(self, target: str, fingerprint: str, most: int, *, write: bool = False) -> None:
        self.place = place_of(target)
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
        """Close the gallery until it is needed again; a writer so lets others write."""
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


def without_places(error: Exception, place: Path | Server) -> str:
    """What an error says, for who asks over the network: without paths and hosts."""
    if isinstance(place, Server):
        return "the gallery's database cannot be used."
    if isinstance(error, OSError):
        return f"the gallery cannot be used ({error.strerror or 'the disk fails'})."
    text = error.message if isinstance(error, LookalikeError) else str(error)
    for known in {str(place), str(place.absolute()), str(place.resolve())}:
        text = re.sub(rf"{re.escape(known)}(/[^\s:]*)?", "the gallery", text)
    text = re.sub(r"process \d+ on .* is writing", "another process is writing", text)
    return re.sub(r"(?<![\w.])~?/[^\s:)]+", "…", text)
