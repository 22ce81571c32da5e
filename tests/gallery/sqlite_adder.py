"""A program for `test_sqlite_survival.py`: for each line on its input, a child that adds rows until it is killed.

    sqlite_adder.py FOLDER ROWS BATCH EXACT_BELOW

It prints the child's process id; the child prints each path once the store has acknowledged it, and at last "done".
Forking from a process that has imported everything makes a hundred kills a matter of seconds.
"""

from __future__ import annotations

import os
import sys

from sqlite_items import rows_of, vectors_of

from lookalike.gallery.store.ann_index import HnswIndex
from lookalike.gallery.store.sqlite import SqliteStore


def add(folder: str, count: int, batch: int, exact_below: int) -> None:
    """Add what is missing of `count` rows, saying what is kept."""
    vectors = vectors_of(count)
    with SqliteStore.open(folder, write=True, exact_below=exact_below) as store:
        rows = rows_of(vectors)
        there = store.by_path([row.path for row in rows])
        missing = [row for row in rows if row.path not in there]
        for start in range(0, len(missing), batch):
            some = missing[start : start + batch]
            store.add(some)
            print("".join(f"kept {row.path}\n" for row in some), end="", flush=True)
    print("done", flush=True)


def main() -> None:
    """One child for each line."""
    folder, count, batch, exact_below = sys.argv[1], *map(int, sys.argv[2:5])
    HnswIndex(4)  # what is imported late is imported now
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                add(folder, count, batch, exact_below)
            finally:
                os._exit(0)
        print(f"child {child}", flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
