"""A program for `test_postgres_survival.py`: for each line on its input, a child that works until it is killed.

    postgres_worker.py DSN FOLDER

A line is the name of a gallery, an operation and a seed. The child prints "will BATCH LABEL" before a change and "did
BATCH LABEL" once it is acknowledged; the label "-" stands for removed items. The items of a batch are always changed
together.
"""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace
from pathlib import Path

from stores import new_rows, units

from lookalike.gallery.export import export_rows
from lookalike.gallery.store.base import NewItem, Store
from lookalike.gallery.store.postgres import PostgresStore

BATCHES, SIZE = 6, 25


def batch_of(number: int, label: str) -> list[NewItem]:
    """The rows of a batch, under this label."""
    rows = new_rows(units(SIZE, seed=number), start=SIZE * number, thumbnail=b"t" * 2000)
    return [replace(row, label=label, metadata={"batch": number, "label": label}) for row in rows]


def change(store: Store, operation: str, chance: random.Random, turns: int = 1000) -> None:
    """One acknowledged change of a batch after another."""
    for turn in range(turns):
        number, label = chance.randrange(BATCHES), f"{operation}-{turn}-{chance.randrange(10**6)}"
        rows = batch_of(number, label)
        ids = [row.id for row in store.by_path([row.path for row in rows]).values()]
        if operation == "label" and not ids:
            continue
        if operation == "remove" and ids:
            label = "-"
        print(f"will {number} {label}", flush=True)
        if operation == "label":
            store.update(ids, label, rows[0].metadata)
        elif label == "-":
            store.remove(ids)
        else:
            store.add(rows)
        print(f"did {number} {label}", flush=True)


def work(dsn: str, name: str, folder: Path, operation: str, seed: int) -> None:
    """Do one of the operations, most of them without end."""
    with PostgresStore.open(dsn, name, write=True, exact_below=20) as store:
        print("open", flush=True)
        if operation == "compact":
            for _ in range(1000):
                store.compact()
        elif operation == "export":
            for turn in range(1000):
                export_rows(store, folder / f"{seed}-{turn}.parquet")
        else:
            change(store, operation, random.Random(seed))


def main() -> None:
    """One child for each line."""
    dsn, folder = sys.argv[1:3]
    for line in sys.stdin:
        name, operation, seed = line.split()
        child = os.fork()
        if child == 0:
            try:
                work(dsn, name, Path(folder), operation, int(seed))
            finally:
                os._exit(0)
        print(f"child {child}", flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
