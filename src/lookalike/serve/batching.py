"""Pictures of many requests through the runtime together.

One thread runs the runtime on whatever waits, up to `batch` pictures. While it is at work, others gather for the next
turn: nothing is delayed to wait for company, and the more there is to do, the larger the batches are. Everything that
waits is counted, so that a queue cannot grow: who comes when it is full is told so at once. What nobody waits for any
more is dropped before it costs work.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.models.runtime import Outputs, Runtime
from lookalike.serve.errors import RefusedError, overloaded, unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """Pictures of one request, and who waits for them."""

    pictures: Sequence[NDArray[np.uint8]]
    answer: asyncio.Future[Outputs]
    loop: asyncio.AbstractEventLoop

    def finish(self, outputs: Outputs | None, error: Exception | None) -> None:
        """Hand over the answer, or what went wrong, in the loop's own thread."""
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        elif outputs is not None:
            self.answer.set_result(outputs)


class Batcher:
    """A runtime that serves many at once.

    Args:
        runtime: its `run` is called by one thread, of this object.
        batch: pictures at once, at most.
        most: pictures that are on their way, from `places` to the answer, at most.
        seen: called with the size of each batch, in that thread.
    """

    def __init__(
        self, runtime: Runtime, batch: int, most: int, seen: Callable[[int], None] = lambda size: None
    ) -> None:
        self.runtime = runtime
        self.failing = ""
        self._batch, self._most, self._seen = batch, most, seen
        self._taken = 0
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="lookalike-runtime", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that are on their way."""
        return self._taken

    @property
    def is_full(self) -> bool:
        """Whether there is no place for one more."""
        return self._taken >= self._most

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Room for so many pictures, to be held from before they are decoded until they are answered.

        Raises:
            RefusedError: 503, too many are on their way.
        """
        if self._taken + count > self._most:
            raise overloaded("max_waiting", self._most)
        self._taken += count  # only ever changed by the loop's thread
        try:
            yield
        finally:
            self._taken -= count

    async def run(self, pictures: Sequence[NDArray[np.uint8]]) -> Outputs:
        """The runtime's outputs for pictures, (size, size, 3) uint8. When the caller is cancelled, they are dropped.

        Raises:
            RefusedError: 503, the runtime failed or is closed.
        """
        loop = asyncio.get_running_loop()
        job = _Job(pictures, loop.create_future(), loop)
        with self._changed:
            if self._closed:
                raise unavailable("the service is about to end.")
            self._jobs.append(job)
            self._changed.notify()
        return await job.answer

    def close(self) -> None:
        """Finish what waits, end the thread, and let the runtime go."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self.runtime.close()

    def _work(self) -> None:
        while jobs := self._take():
            pictures = [picture for job in jobs for picture in job.pictures]
            parts: list[Outputs] = []
            error: Exception | None = None
            try:
                for low in range(0, len(pictures), self._batch):  # more than one turn only for one request alone
                    some = np.stack(pictures[low : low + self._batch])
                    found = self.runtime.run(some)
                    parts.append(Outputs(found.logits, found.vectors))
                    self._seen(len(some))
                self.failing = ""
            except Exception as raised:
                log.exception("inference failed")
                self.failing = "inference failed."
                error = _failed(raised)
            _hand_out(jobs, parts, error)

    def _take(self) -> list[_Job]:
        """The jobs of the next turn, whole ones; an empty list at the end."""
        with self._changed:
            while True:
                jobs: list[_Job] = []
                count = 0
                while self._jobs and (not jobs or count + len(self._jobs[0].pictures) <= self._batch):
                    job = self._jobs.popleft()
                    if not job.answer.cancelled():
                        jobs.append(job)
                        count += len(job.pictures)
                if jobs or self._closed:
                    return jobs
                self._changed.wait()


def _hand_out(jobs: Sequence[_Job], parts: Sequence[Outputs], error: Exception | None) -> None:
    outputs = None if error is not None else _joined(parts)
    low = 0
    for job in jobs:
        high = low + len(job.pictures)
        own = None if outputs is None else _cut(outputs, low, high)
        low = high
        try:
            job.loop.call_soon_threadsafe(job.finish, own, error)
        except RuntimeError:  # the loop is closed: nobody waits
            log.debug("an answer that nobody waits for")


def _failed(error: Exception) -> RefusedError:
    return unavailable("not enough memory for inference." if isinstance(error, MemoryError) else "inference failed.")


def _joined(parts: Sequence[Outputs]) -> Outputs:
    if len(parts) == 1:
        return parts[0]
    logits = [part.logits for part in parts if part.logits is not None]
    return Outputs(np.concatenate(logits) if logits else None, np.concatenate([part.vectors for part in parts]))


def _cut(outputs: Outputs, low: int, high: int) -> Outputs:
    return Outputs(None if outputs.logits is None else outputs.logits[low:high], outputs.vectors[low:high])
