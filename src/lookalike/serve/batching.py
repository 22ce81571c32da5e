"""Dynamic batching: the images of many requests go through the network together.

One thread runs the network on the images that wait, up to `batch_size` at a time. While it works, others gather for
the next batch: no request is delayed to wait for more, and batches grow with the load. The number of images in flight
is bounded; requests beyond it are refused at once. Jobs of cancelled requests are dropped before they are computed.
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
from lookalike.serve.errors import overloaded, unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """The images or the texts of one request, and the future of its event loop that waits for their outputs."""

    images: Sequence[NDArray[np.uint8]]
    future: asyncio.Future[Outputs]
    loop: asyncio.AbstractEventLoop
    texts: Sequence[str] = ()

    def finish(self, outputs: Outputs | None, error: Exception | None) -> None:
        """Set the result. Runs in the event loop's thread."""
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        elif outputs is not None:
            self.future.set_result(outputs)


class Batcher:
    """Runs a network for many requests at once.

    Args:
        runtime: the network. Its `run` is called in one thread, which belongs to this object.
        batch_size: images in a batch, at most.
        max_waiting: images in flight, from `reserve` to the response, at most.
        on_batch: called with the size of each batch, in that thread.
    """

    def __init__(
        self, runtime: Runtime, batch_size: int, max_waiting: int, on_batch: Callable[[int], None] = lambda size: None
    ) -> None:
        self.runtime = runtime
        self.failure = ""  # why the last batch failed
        self._batch_size, self._max_waiting, self._on_batch = batch_size, max_waiting, on_batch
        self._waiting = 0
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="lookalike-runtime", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images in flight."""
        return self._waiting

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another image."""
        return self._waiting >= self._max_waiting

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Count images as in flight, from before they are decoded until their request is answered.

        Raises:
            RefusedError: 503, too many are in flight.
        """
        if self._waiting + count > self._max_waiting:
            raise overloaded("max_waiting", self._max_waiting)
        self._waiting += count  # only the event loop's thread changes it
        try:
            yield
        finally:
            self._waiting -= count

    async def run(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Return the network's outputs for images, (size, size, 3) uint8. Cancelling the call drops them.

        Raises:
            RefusedError: 503, the network failed or the batcher is closed.
        """
        loop = asyncio.get_running_loop()
        return await self._wait_for(_Job(images, loop.create_future(), loop))

    async def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors (N, D) of texts, at least one. The caller checks that the runtime knows texts.

        Raises:
            RefusedError: 503, the network failed or the batcher is closed.
        """
        loop = asyncio.get_running_loop()
        return (await self._wait_for(_Job((), loop.create_future(), loop, texts))).vectors

    async def _wait_for(self, job: _Job) -> Outputs:
        with self._changed:
            if self._closed:
                raise unavailable("the service is stopping.")
            self._jobs.append(job)
            self._changed.notify()
        return await job.future

    def close(self) -> None:
        """Finish the jobs that wait, end the thread, and close the runtime."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self.runtime.close()

    def _work(self) -> None:
        while jobs := self._take_jobs():
            images = [image for job in jobs for image in job.images]
            parts: list[Outputs] = []
            error: Exception | None = None
            try:
                if jobs[0].texts:
                    parts.append(Outputs(None, self.runtime.embed_text(jobs[0].texts)))
                for start in range(0, len(images), self._batch_size):  # several only for one large request
                    batch = np.stack(images[start : start + self._batch_size])
                    parts.append(self.runtime.run(batch))
                    self._on_batch(len(batch))
                self.failure = ""
            except Exception as raised:
                log.exception("inference failed")
                is_memory = isinstance(raised, MemoryError)
                self.failure = "not enough memory for inference." if is_memory else "inference failed."
                error = unavailable(self.failure)
            _finish(jobs, parts, error)

    def _size(self, job: _Job) -> int:
        """How much of a batch a job fills, in images; all of it, if it has texts."""
        return self._batch_size if job.texts else len(job.images)

    def _take_jobs(self) -> list[_Job]:
        """Wait for jobs and return as many whole ones as fit into a batch; an empty list once closed.

        A job of texts is returned alone.
        """
        with self._changed:
            while True:
                jobs: list[_Job] = []
                count = 0
                while self._jobs and (not jobs or count + self._size(self._jobs[0]) <= self._batch_size):
                    job = self._jobs.popleft()
                    if not job.future.cancelled():
                        jobs.append(job)
                        count += self._size(job)
                if jobs or self._closed:
                    return jobs
                self._changed.wait()


def _finish(jobs: Sequence[_Job], parts: Sequence[Outputs], error: Exception | None) -> None:
    """Give each job its part of the outputs, or the error."""
    outputs = None if error is not None else _concatenate(parts)
    start = 0
    for job in jobs:
        end = start + (len(job.texts) or len(job.images))
        part = None if outputs is None else _slice(outputs, start, end)
        start = end
        try:
            job.loop.call_soon_threadsafe(job.finish, part, error)
        except RuntimeError:  # the loop is closed: nobody waits
            log.debug("an event loop has closed before its outputs were computed")


def _concatenate(parts: Sequence[Outputs]) -> Outputs:
    if len(parts) == 1:
        return parts[0]
    logits = [part.logits for part in parts if part.logits is not None]
    return Outputs(np.concatenate(logits) if logits else None, np.concatenate([part.vectors for part in parts]))


def _slice(outputs: Outputs, start: int, end: int) -> Outputs:
    return Outputs(None if outputs.logits is None else outputs.logits[start:end], outputs.vectors[start:end])
