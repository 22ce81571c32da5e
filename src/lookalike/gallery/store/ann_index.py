"""The approximate index: a graph of near neighbours (HNSW; Malkov and Yashunin, arXiv:1603.09320), by usearch.

Its nodes hold int8 copies of the vectors, half the memory traffic of float16; each is scaled to use all of int8, which
the cosine does not see. What it finds is only a short list: the caller scores it again with the kept vectors.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from usearch.compiled import MetricKind, ScalarKind
from usearch.index import Index

from lookalike.errors import InputError
from lookalike.files import atomic_file, sync
from lookalike.gallery.store.checks import checksum
from lookalike.gallery.store.derived_files import fault_of, length_and_checksum, opened, read_whole
from lookalike.gallery.store.graph_file import fault_of_graph
from lookalike.gallery.store.sqlite_rows import shown
from lookalike.gallery.store.sqlite_schema import file_of, read_meta
from lookalike.hardware import cores

with suppress(OSError):  # usearch has a C++ library inside; where that is the first one in the process, Ray aborts
    ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)


CONNECTIVITY = 24  # neighbours of a node on the upper levels, twice as many on the lowest


BUILDING = 128  # candidates looked at to place a node


SEARCHING = 64  # candidates looked at to answer a query


MANY = 200_000  # vectors beyond which they are twice as many


CHUNK = 8192  # vectors added at a time


FIRST = 1024  # vectors placed one after the other: threads that place the first ones do not see each other's


LOOKED_AT = 10  # nearest ones among which a vector that was placed must find itself


EQUAL = 1e-6  # cosine distance below which two vectors count as equal


class HnswIndex:
    """Near neighbours of vectors that are known by their position, 0 to `len(self)` - 1.

    Args:
        dim: numbers of a vector.
        count: vectors that it has when it is searched; more of them take more effort. None for a graph that grows.
    """

    def __init__(self, dim: int, count: int | None = None) -> None:
        self._index = Index(
            ndim=dim,
            metric=MetricKind.Cos,
            dtype=ScalarKind.I8,
            connectivity=CONNECTIVITY,
            expansion_add=BUILDING,
            expansion_search=_effort(count or 0),
            enable_key_lookups=count is None,  # where a key is matters only to place it anew
        )
        self.data = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._index)

    def view(self, data: NDArray[np.uint8]) -> None:
        """Use a saved graph, the bytes of its file (L,), without a copy. `fault_of_saved` comes first."""
        self._index.view(data.data)
        self.data = data  # which usearch does not keep

    def load(self, data: NDArray[np.uint8]) -> None:
        """Take up a copy of a saved graph, to add to it. `fault_of_saved` comes first."""
        self._index.load(data.data)

    def add(self, vectors: NDArray[np.float16]) -> None:
        """Place further vectors, (N, D), on all cores; they get the next positions. Of a graph that grows."""
        start = 0
        while start < len(vectors):
            alone = len(self) < FIRST
            part = vectors[start : start + (FIRST - len(self) if alone else CHUNK)]
            positions = np.arange(len(self), len(self) + len(part), dtype=np.uint64)
            small = _small(part)
            threads = 1 if alone else cores()
            self._index.add(positions, small, threads=threads)
            if threads > 1:
                self._mend(positions, small)
            start += len(part)

    def _mend(self, positions: NDArray[np.uint64], small: NDArray[np.int8]) -> None:
        """Place those anew, one after the other, that cannot be found by their own vector.

        Threads that place vectors side by side lose some, and with each a part of the answers of the queries near it:
        one in 250 where there are more threads than processors, one in some thousands where there are as many.
        """
        self._index.expansion_search = _effort(len(self))  # type: ignore[misc]  # its setter stands apart
        found = self._index.search(small, min(LOOKED_AT, len(self)), threads=cores())
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)  # of one vector they are flat
        itself = (keys == positions[:, None]).any(axis=1)
        among_equals = distances[:, -1] < EQUAL  # it need not be one of so few
        for place in np.flatnonzero(~itself & ~among_equals):
            self._index.remove(int(positions[place]))
            self._index.add(positions[place], small[place], threads=1)

    def save(self, path: Path) -> None:
        """Write it to a file.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self._index.save(path)
        except (RuntimeError, ValueError) as error:
            raise OSError(errno.EIO, str(error), str(path)) from None
        if path.stat().st_size != self._index.serialized_length:
            raise OSError(errno.ENOSPC, "was not written whole", str(path))

    def nearest(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Positions of about the `count` nearest to a query (D,); never more than there are."""
        found = self._index.search(_small(query[None])[0], min(count, len(self)), threads=1)
        return np.asarray(found.keys).astype(np.int64)


def fault_of_saved(data: NDArray[np.uint8], dim: int, count: int) -> str:
    """What is wrong with the bytes of a saved graph of `count` vectors; empty where it may be used."""
    return fault_of_graph(data, dim, count, CONNECTIVITY)


def _effort(count: int) -> int:
    """Candidates looked at to answer a query among so many vectors."""
    return 2 * SEARCHING if count > MANY else SEARCHING


def _small(vectors: NDArray[np.floating]) -> NDArray[np.int8]:
    """(N, D) int8: each vector scaled so that its largest number is 127."""
    numbers = np.asarray(vectors, np.float32)
    most = np.abs(numbers).max(axis=1, keepdims=True)
    small: NDArray[np.int8] = np.rint(numbers * (127 / np.maximum(most, 1e-12))).astype(np.int8)
    return small


# Files made from the database to search fast, which can be lost: the vectors as one matrix, and the graph over them.

PART = 1 << 18  # numbers looked at at a time


READ = 4096  # vectors read from the database at a time


PATTERNS = ("vectors-*.f16", "graph-*.usearch", "*.partial")


TOKEN = re.compile(r"[0-9a-f]{12}")


LARGEST = (1 << 63) - 1


INFINITE = 0x7C00  # the exponent of float16 numbers that are not finite


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
        """As the database has it.

        Raises:
            ValueError: it is not what `to_json` writes.
        """
        try:
            tree = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(tree, dict) or tree.keys() != {"token", "highest", "positions", "files"}:
            raise ValueError("not of these keys")
        if not isinstance(tree["token"], str) or not TOKEN.fullmatch(tree["token"]):
            raise ValueError("'token' is not 12 hexadecimal digits")
        for key in ("highest", "positions"):
            if type(tree[key]) is not int or not 0 <= tree[key] <= LARGEST:
                raise ValueError(f"'{key}' is not a number of rows")
        if tree["positions"] > tree["highest"]:
            raise ValueError("more rows than ids")
        bare = cls(tree["token"], tree["highest"], tree["positions"])
        if not isinstance(tree["files"], dict) or not tree["files"].keys() <= {bare.vectors_name, bare.graph_name}:
            raise ValueError("'files' has other names than those of its token")
        files = {}
        for name, numbers in tree["files"].items():
            if not isinstance(numbers, list) or [type(number) for number in numbers] != [int, int]:
                raise ValueError(f"'files' does not give the length and checksum of '{name}'")
            length, total = numbers
            if not (0 <= length <= LARGEST and 0 <= total < 1 << 32):
                raise ValueError(f"'files' does not give the length and checksum of '{name}'")
            files[name] = (length, total)
        return cls(bare.token, bare.highest, bare.positions, files)


def read_generation(db: sqlite3.Connection) -> Generation:
    """The derived files as the database names them.

    Raises:
        InputError: what it says of them is not readable.
    """
    return generation_of(read_meta(db).generation, file_of(db))


def generation_of(text: str, database: str) -> Generation:
    """Likewise, from what was read of that database."""
    try:
        return Generation.from_json(text)
    except ValueError as error:
        raise InputError(
            f"{database}: what it says of the derived files is damaged ({error}).",
            "Make them anew with 'lookalike gallery compact'; no row is lost.",
        ) from None


@dataclass(frozen=True)
class Covered:
    """An opened generation: `ids` (N,) int64 ascending, `matrix` (N, D) float16, both read-only, and the graph."""

    ids: NDArray[np.int64]
    matrix: NDArray[np.float16]
    graph: HnswIndex | None


def faults_of(folder: Path, generation: Generation, dim: int) -> dict[str, str]:
    """What is wrong with the files of a generation, by name: every byte of them is read."""
    return open_covered(folder, generation, dim, again=True)[1]


def quick_faults_of(folder: Path, generation: Generation) -> dict[str, str]:
    """The same from the files' lengths only."""
    found = {}
    for name, (length, _) in generation.files.items():
        try:
            with opened(folder / name, length):
                pass
        except OSError as error:
            found[name] = fault_of(error)
    return found


def open_covered(
    folder: Path, generation: Generation, dim: int, *, again: bool = False
) -> tuple[Covered, dict[str, str]]:
    """The files that are whole, and what is wrong with the others. Without a whole matrix nothing is covered.

    Args:
        folder: the gallery's.
        generation: what the database names.
        dim: numbers of a vector.
        again: read every byte, also of files that this process has in memory.
    """
    faults: dict[str, str] = {}

    def whole(name: str) -> NDArray[np.uint8] | None:
        try:
            return read_whole(folder / name, *generation.files[name], again=again)
        except OSError as error:
            faults[name] = fault_of(error)
        except MemoryError:
            faults[name] = "is larger than the memory that is free"
        return None

    none = Covered(np.empty(0, np.int64), np.empty((0, dim), np.float16), None)
    name, positions = generation.vectors_name, generation.positions
    vectors = whole(name) if name in generation.files else None
    saved = whole(generation.graph_name) if generation.graph_name in generation.files else None
    if vectors is None or not positions:
        return none, faults
    if fault := _fault_of_vectors(vectors, generation, dim):
        return none, {**faults, name: fault}
    numbers = vectors[: positions * dim * 2].view("<f2").reshape(positions, dim)
    ids = vectors[positions * dim * 2 :].view("<i8").copy()
    graph = None
    if saved is not None:
        if fault := fault_of_saved(saved, dim, positions):
            faults[generation.graph_name] = fault
        else:
            graph = HnswIndex(dim, positions)
            graph.view(saved)
    return Covered(ids, numbers, graph), faults


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
        InputError: the files cannot be written, or a vector in the database is damaged.
    """
    new = Generation()
    graph = HnswIndex(dim)
    ids = np.empty(0, np.int64)
    names = [new.vectors_name, new.graph_name] if with_graph else [new.vectors_name]
    with ExitStack() as stack:
        beside = {name: stack.enter_context(atomic_file(folder / name)) for name in names}
        with beside[new.vectors_name].open("wb") as file:
            if onto is not None:
                ids = _go_on(folder, onto, dim, file, graph if with_graph else None)
            for more, vectors in stored_vectors(db, dim, after=onto.highest if onto is not None else 0):
                file.write(vectors.data)
                if with_graph:
                    graph.add(vectors)
                ids = np.concatenate([ids, more])
            file.write(ids.tobytes())
            file.flush()
            os.fsync(file.fileno())
        if with_graph:
            graph.save(beside[new.graph_name])
            sync(beside[new.graph_name])
        files = {name: length_and_checksum(beside[name]) for name in names}
    sync(folder)
    return Generation(new.token, int(ids[-1]) if len(ids) else 0, len(ids), files)


def _go_on(folder: Path, onto: Generation, dim: int, file: IO[bytes], graph: HnswIndex | None) -> NDArray[np.int64]:
    """Write the vectors of a generation into a new file, and take up its graph; the ids.

    Raises:
        OSError: its vectors cannot be read any more.
    """
    covered, faults = open_covered(folder, onto, dim)
    if onto.vectors_name in faults:
        raise OSError(errno.EIO, faults[onto.vectors_name], str(folder / onto.vectors_name))
    file.write(covered.matrix.data)
    if graph is not None:
        if covered.graph is not None:
            graph.load(covered.graph.data)
        else:
            graph.add(covered.matrix)
    return covered.ids


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
    last = after
    while records := cursor.fetchmany(READ):
        for id, vector, expected in records:
            if id <= last:  # a tree of pages that leads back into itself
                raise damaged_vector(db, id)
            if type(vector) is not bytes or len(vector) != 2 * dim or checksum(id, vector) != expected:
                raise damaged_vector(db, id)
            last = id
        numbers = np.frombuffer(b"".join(vector for _, vector, _ in records), "<f2").reshape(-1, dim)
        if not _finite(numbers):
            places = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
            raise damaged_vector(db, records[int(places[0])][0])
        yield np.array([id for id, _, _ in records], np.int64), numbers


def damaged_vector(db: sqlite3.Connection, id: int) -> InputError:
    """The error for a vector that does not match its checksum or is not finite, naming its picture."""
    found = db.execute("SELECT path FROM images WHERE id = ?", (id,)).fetchone()
    return InputError(
        f"{shown(found[0]) if found else 'a row without a path'}: its vector (id {id}) is damaged in {file_of(db)}.",
        "Remove it and add the picture again; 'lookalike gallery check' names every such row.",
    )


def _fault_of_vectors(data: NDArray[np.uint8], generation: Generation, dim: int) -> str:
    """What is wrong with the bytes of a file of vectors, of the right length and checksum as it may be."""
    positions = generation.positions
    if len(data) != positions * (2 * dim + 8):
        return f"does not hold {positions:,} vectors of {dim} numbers"
    ids = data[positions * dim * 2 :].view("<i8")
    if int(ids[0]) < 1 or int(ids[-1]) != generation.highest or not (ids[1:] > ids[:-1]).all():
        return "does not have the ids that the database says"
    if not _finite(data[: positions * dim * 2].view("<f2")):
        return "holds a vector that is not finite"
    return ""


def _finite(numbers: NDArray[np.float16]) -> bool:
    """Whether all numbers are, looked at in parts that stay in the processor's cache."""
    bits = numbers.reshape(-1).view("<u2")
    parts = (bits[first : first + PART] for first in range(0, len(bits), PART))
    return all(not ((part & INFINITE) == INFINITE).any() for part in parts)
