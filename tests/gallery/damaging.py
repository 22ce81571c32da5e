"""Random damage to the files of a gallery, and what comes of it.

    python tests/gallery/damaging.py FOLDER TIMES SEED

FOLDER is one that is not there yet. Each time one file of a copy of a gallery is damaged; then everything is asked that
a gallery answers. Printed is a line of JSON: how many damages were "found" (an error that names the gallery or a row,
or a fault of `verify`; the answers that were given are right), "harmless" (all answers right, nothing found), "wrong
but verified" (an answer was wrong without a word, and `verify` or another answer finds the damage), and "wrong" without
any word.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from sqlite_items import made, vectors_of

from lookalike.errors import InputError
from lookalike.gallery.store.sqlite import SqliteStore

EXACT_BELOW = 100
ROWS = 400
QUERIES = vectors_of(5, seed=5)
FILTERS: tuple[dict[str, Any], ...] = ({"label": "class 3"}, {"even": True}, {"n": [7, 8, 9]}, {"path": "000021.jpg"})
KINDS = ("flip", "cut", "zero", "extend", "overwrite", "swap")


def answers(store: SqliteStore) -> dict[str, Any]:
    """Everything that a gallery answers, each with its name; an error stands for its answer."""

    def searched(**how: Any) -> list[Any]:
        found = store.search(QUERIES, 5, **how)
        return [[(hit.id, hit.path, hit.label, round(hit.score, 5)) for hit in one.hits] for one in found]

    asked = {
        "rows": lambda: [
            (row.id, row.path, row.digest, row.label, dict(row.metadata), row.dhash) for row in store.rows()
        ],
        "length": lambda: len(store),
        "search": searched,
        "exact search": lambda: searched(exact=True),
        "vectors": lambda: store.vectors(range(1, ROWS + 1, 7)).tobytes(),
        "thumbnails": lambda: [store.thumbnail(id) for id in range(1, ROWS, 11)],
        "by path": lambda: sorted(store.by_path([f"{n:06}.jpg" for n in range(0, ROWS, 9)])),
        "labels": lambda: store.labels(20),
        "rejected": store.rejected,
        **{f"search filter {filter}": lambda filter=filter: searched(filter=filter) for filter in FILTERS},
        **{f"count filter {filter}": lambda filter=filter: store.count(filter) for filter in FILTERS},
    }
    given = {}
    for name, ask in asked.items():
        try:
            given[name] = ask()
        except InputError as error:
            given[name] = error
    return given


def damage(path: Path, kind: str, random: np.random.Generator) -> str:
    """Damage a file; what was done."""
    data = bytearray(path.read_bytes())
    place = int(random.integers(max(len(data), 1)))
    length = int(min(random.integers(1, 4096), len(data) - place))
    if kind == "flip" and data:
        data[place] ^= 1 << int(random.integers(8))
    elif kind == "cut":
        del data[place:]
    elif kind == "zero":
        data[place : place + length] = bytes(length)
    elif kind == "extend":
        data += random.bytes(int(random.integers(1, 4096)))
    elif kind == "overwrite":
        data[place : place + length] = random.bytes(length)
    elif kind == "swap":  # two blocks, as a failing disk may
        other = int(random.integers(max(len(data) - length, 1)))
        data[place : place + length], data[other : other + length] = (
            data[other : other + length],
            data[place : place + length],
        )
    path.write_bytes(data)
    return f"{kind} of {path.name} at {place:,} of {len(data):,}, {length:,} bytes"


def outcome(folder: Path, right: dict[str, Any]) -> tuple[str, str]:
    """What came of a damage, and of what."""
    try:
        with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
            given = answers(store)
        with SqliteStore.open(folder, exact_below=EXACT_BELOW) as store:
            try:
                named = bool(store.check())
            except InputError:
                named = True
    except InputError:
        return "found", ""
    errors = [name for name, answer in given.items() if isinstance(answer, InputError)]
    wrong = [name for name, answer in given.items() if name not in errors and answer != right[name]]
    if wrong:
        return ("wrong but verified" if named or errors else "wrong"), wrong[0]
    return ("found" if named or errors else "harmless"), ""


def main(folder: Path, times: int, seed: int) -> None:
    """Damage so many times."""
    whole = folder / "whole.gallery"
    folder.mkdir()
    made(whole, ROWS, exact_below=EXACT_BELOW).close()
    with SqliteStore.open(whole, exact_below=EXACT_BELOW) as store:
        right = answers(store)
        assert store.check() == []
    random = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {}
    for _ in range(times):
        shutil.copytree(whole, folder / "damaged")
        files = sorted(path for path in (folder / "damaged").iterdir() if path.stat().st_size)
        path = files[int(random.integers(len(files)))]
        done = damage(path, KINDS[int(random.integers(len(KINDS)))], random)
        print(done, file=sys.stderr, flush=True)  # the last line says what a process died of
        what, of = outcome(folder / "damaged", right)
        if what.startswith("wrong"):
            print(f"  {what}: {of}", file=sys.stderr, flush=True)
        counts.setdefault(path.name.partition("-")[0], Counter())[what] += 1
        shutil.rmtree(folder / "damaged")
    print(json.dumps({name: dict(count) for name, count in sorted(counts.items())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
