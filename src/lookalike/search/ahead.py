"""Work done ahead of its use, in a thread of its own: the link between the stages of a pipeline."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from queue import Full, Queue
from typing import TypeVar

ItemT = TypeVar("ItemT")

GLANCE = 0.1  # seconds after which a thread that waits looks whether it is still wanted


class _End:
    """Comes after the last item."""


@contextmanager
def ahead(items: Generator[ItemT], most: int) -> Iterator[Iterator[ItemT]]:
    """Run a generator in a thread, at most `most` items ahead of whoever iterates.

    What the generator raises is raised where the items are used. When the block is left, however that comes, the
    generator is closed after the item it works on, and the thread has ended.

    Args:
        items: runs in that thread from its first item to its end or closing.
        most: items that wait to be used, at most.
    """
    waiting: Queue[ItemT | _End] = Queue(most)
    unwanted = threading.Event()
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
