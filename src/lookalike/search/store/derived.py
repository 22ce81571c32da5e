"""Files made from the database to search fast, which can be lost: the vectors as one matrix, and the graph over them.

    vectors-TOKEN.f16    (N, D) float16, then (N,) int64 the rows' ids in ascending order
    graph-TOKEN.usearch  the approximate index over the same N positions

The database names the generation of files that belongs to it: its token, which rows it covers (all ids up to
`highest`), and each file's length and CRC-32. A new generation is written beside under a new token, and then named in
one transaction: a reader sees the old pair or the new one. A file that is missing, cut, changed or another gallery's
does not match what the database says, and is not used. Rows removed since are still in the files; `removed` in the
database says which.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.search.store.approximate import Graph
from lookalike.search.store.rowdata import checksum

READ = 4096  # vectors read from the database at a time
BLOCK = 1 << 22  # bytes read at a time for a checksum
PATTERNS = ("vectors-*.f16", "graph-*.usearch", ".*.partial")


@dataclass(frozen=True)
class Generation:
    """What the database says of its derived files.

    Args:
        token: part of the files' names.
        highest: the greatest id that they cover; 0 where there are none.
        positions: vectors in them, removed ones as well.
        files: name → [bytes, CRC-32].
    """

    token: str = field(default_factory=lambda: secrets.token_hex(6))
    highest: int = 0
    positions: int = 0
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def vectors_name(self) -> str:
        return f"vectors-{self.token}.f16"

    @property
    def graph_name(self) -> str:
        return f"graph-{self.token}.usearch"

    def to_json(self) -> str:
        """For the database."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Generation:
        """As the database has it."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Covered:
    """An opened generation: `ids` (N,) int64 ascending, `matrix` (N, D) float16 memory-mapped, and the graph."""

    ids: NDArray[np.int64]
    matrix: NDArray[np.float16]
    graph: Graph | None


def faults_of(folder: Path, generation: Generation) -> dict[str, str]:
    """What is wrong with the files of a generation, by name: every byte of them is read."""
    found = {name: _fault(folder / name, *expected) for name, expected in generation.files.items()}
    return {name: fault for name, fault in found.items() if fault}


def quick_faults_of(folder: Path, generation: Generation) -> dict[str, str]:
    """The same from the files' lengths only."""
    found = {name: _fault_of_length(folder / name, length) for name, (length, _) in generation.files.items()}
    return {name: fault for name, fault in found.items() if fault}


def open_covered(folder: Path, generation: Generation, dim: int) -> tuple[Covered, dict[str, str]]:
    """The files that are whole, and what is wrong with the others. Without a whole matrix nothing is covered."""
    faults = faults_of(folder, generation)
    name = generation.vectors_name
    if not generation.positions or name in faults:
        return Covered(np.empty(0, np.int64), np.empty((0, dim), np.float16), None), faults
    ids, matrix = _mapped(folder / name, generation.positions, dim)
    graph = None
    if generation.graph_name in generation.files and generation.graph_name not in faults:
        graph = Graph(dim, generation.positions)
        graph.view(folder / generation.graph_name)
    return Covered(ids, matrix, graph), faults


def make_generation(
    folder: Path, db: sqlite3.Connection, dim: int, *, onto: Generation | None, with_graph: bool
) -> Generation:
    """Write the files of a new generation over all rows; nothing refers to them until the database names it.

    Args:
        folder: the gallery's.
        db: where the rows are.
        dim: numbers of a vector.
        onto: go on from these whole files, keeping their positions; None makes everything anew.
        with_graph: whether to make the approximate index.

    Raises:
        OSError: the files cannot be written.
        InputError: a vector in the database is damaged.
    """
    new = Generation()
    beside = {name: folder / f".{name}.partial" for name in (new.vectors_name, new.graph_name)}
    graph = Graph(dim)
    ids = np.empty(0, np.int64)
    try:
        with beside[new.vectors_name].open("wb") as file:
            if onto is not None:
                ids, matrix = _mapped(folder / onto.vectors_name, onto.positions, dim)
                file.write(matrix.data)
                if with_graph and onto.graph_name in onto.files:
                    graph.load(folder / onto.graph_name)
                elif with_graph:
                    graph.add(matrix)
            for more, vectors in stored_vectors(db, dim, after=onto.highest if onto is not None else 0):
                file.write(vectors.data)
                if with_graph:
                    graph.add(vectors)
                ids = np.concatenate([ids, more])
            file.write(ids.tobytes())
            file.flush()
            os.fsync(file.fileno())
        names = [new.vectors_name]
        if with_graph:
            graph.save(beside[new.graph_name])
            _sync(beside[new.graph_name])
            names.append(new.graph_name)
        files = {name: _length_and_checksum(beside[name]) for name in names}
        for name in names:
            beside[name].rename(folder / name)
        _sync(folder)
    finally:
        for left in beside.values():
            left.unlink(missing_ok=True)
    return Generation(new.token, int(ids[-1]) if len(ids) else 0, len(ids), files)


def sweep(folder: Path, generation: Generation) -> None:
    """Remove derived files that the database does not name; only for the writer."""
    for pattern in PATTERNS:
        for path in folder.glob(pattern):
            if path.name not in generation.files:
                with suppress(OSError):
                    path.unlink()


def stored_vectors(
    db: sqlite3.Connection, dim: int, *, after: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Ids (N,) and vectors (N, D) of the rows of an id above `after`, in ascending order, some thousand at a time.

    Raises:
        InputError: a vector that is not the one that was stored.
    """
    cursor = db.execute("SELECT id, vector, checksum FROM vectors WHERE id > ? ORDER BY id", (after,))
    while records := cursor.fetchmany(READ):
        for id, vector, expected in records:
            if len(vector) != 2 * dim or checksum(id, vector) != expected:
                raise damaged_vector(db, id)
        numbers = np.frombuffer(b"".join(vector for _, vector, _ in records), "<f2").reshape(-1, dim)
        yield np.array([id for id, _, _ in records], np.int64), numbers


def damaged_vector(db: sqlite3.Connection, id: int) -> InputError:
    """The error for a vector that does not match its checksum, naming its picture."""
    found = db.execute("SELECT path FROM images WHERE id = ?", (id,)).fetchone()
    return InputError(
        f"{found[0] if found else 'a row without a path'}: its vector (id {id}) is damaged in the database.",
        "Remove it and add the picture again; 'lookalike gallery verify' names every such row.",
    )


def _mapped(path: Path, positions: int, dim: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """The ids, in memory, and the matrix, where it lies."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    matrix = np.frombuffer(mapped, "<f2", positions * dim).reshape(positions, dim)
    ids = np.frombuffer(mapped[positions * dim * 2 :], "<i8")
    return ids, matrix


def _fault(path: Path, length: int, expected: int) -> str:
    if fault := _fault_of_length(path, length):
        return fault
    try:
        return "" if _length_and_checksum(path) == (length, expected) else "is not what was written (damaged)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _fault_of_length(path: Path, length: int) -> str:
    try:
        actual = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if actual == length else f"has {actual:,} bytes of {length:,}"


def _length_and_checksum(path: Path) -> tuple[int, int]:
    length = total = 0
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(block):
            total = zlib.crc32(memoryview(block)[:got], total)
            length += got
    return length, total


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
