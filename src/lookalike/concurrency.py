"""Run the stages of a pipeline in threads: `prefetch` a generator, and `map_ordered` a function."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from queue import Full, Queue
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

POLL_SECONDS = 0.1  # how often a waiting thread checks whether it should stop


class _End:
    """Marks the end of the queue."""


@contextmanager
def prefetch(items: Generator[ItemT], most: int, unwanted: threading.Event | None = None) -> Iterator[Iterator[ItemT]]:
    """Run a generator in a thread, up to `most` items ahead of the consumer.

    An exception of the generator is raised in the consumer. When the block ends, for whatever reason, the generator is
    closed after its current item, and the thread is joined.

    Args:
        items: the generator.
        most: the length of the queue.
        unwanted: is set when the block ends, before the thread is joined, so that the generator can stop early.
    """
    unwanted = unwanted or threading.Event()
    waiting: Queue[ItemT | _End] = Queue(most)
    failure: list[BaseException] = []

    def put(item: ItemT | _End) -> None:
        while not unwanted.is_set():
            try:
                waiting.put(item, timeout=POLL_SECONDS)
                return
            except Full:
                continue

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    put(item)
                    if unwanted.is_set():
                        break
        except BaseException as error:  # raised again in the consumer
            failure.append(error)
        put(_End())

    def used() -> Iterator[ItemT]:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if failure:
            raise failure[0]

    thread = threading.Thread(target=work, name="lookalike-ahead", daemon=True)
    thread.start()
    try:
        yield used()
    finally:
        unwanted.set()
        thread.join()


def map_ordered(
    threads: ThreadPoolExecutor, function: Callable[[ItemT], ResultT], items: Iterable[ItemT], most: int
) -> Generator[ResultT]:
    """Apply a function to items in several threads; yield the results in the order of the items.

    Args:
        threads: the pool.
        function: takes one item.
        items: read lazily, as there is room.
        most: items that are in work, or done and not yet consumed.
    """
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()
