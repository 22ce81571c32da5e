"""Work done ahead of its use, in threads of its own: the links between the stages of a pipeline."""

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

GLANCE = 0.1  # seconds after which a thread that waits looks whether it is still wanted


class _End:
    """Comes after the last item."""


@contextmanager
def prefetch(items: Generator[ItemT], most: int, unwanted: threading.Event | None = None) -> Iterator[Iterator[ItemT]]:
    """Run a generator in a thread, at most `most` items ahead of whoever iterates.

    What the generator raises is raised where the items are used. When the block is left, however that comes, the
    generator is closed after the item it works on, and the thread has ended.

    Args:
        items: runs in that thread from its first item to its end or closing.
        most: items that wait to be used, at most.
        unwanted: is set when the block is left, before the thread is waited for: what the generator does may look at it
            and end sooner, by an exception.
    """
    unwanted = unwanted or threading.Event()
    waiting: Queue[ItemT | _End] = Queue(most)
    failure: list[BaseException] = []

    def put(item: ItemT | _End) -> None:
        while not unwanted.is_set():
            try:
                waiting.put(item, timeout=GLANCE)
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
        except BaseException as error:  # handed over to the thread that uses the items
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
    """What a function makes of each item, in the order of the items, which are worked on at the same time.

    Args:
        threads: that work.
        function: of an item.
        items: taken one by one, as there is room.
        most: items at work at once, or done and not yet used.
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
