"""Files made from the database to search fast, which can be lost: the vectors as one matrix, and the graph over them.

    vectors-TOKEN.f16    (N, D) float16, then (N,) int64 the rows' ids in ascending order
    graph-TOKEN.usearch  the approximate index over the same N positions

The database names the generation of files that belongs to it: its token, which rows it covers (all ids up to
`highest`), and each file's length and CRC-32. A new generation is written beside under a new token, and then named in
one transaction: a reader sees the old pair or the new one. A file that is missing, cut, changed or another gallery's
does not match what the database says, and is not used; nor is one that matches and is not what it should be, as a
stranger can make it. Rows removed since are still in the files; `removed` in the database says which.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.files import sync
from lookalike.search.store.approximate import Graph, fault_of_saved
from lookalike.search.store.derived_files import fault_of, length_and_checksum, opened, read_whole
from lookalike.search.store.rowdata import checksum, shown
from lookalike.search.store.schema import file_of, read_meta

PART = 1 << 18  # numbers looked at at a time
READ = 4096  # vectors read from the database at a time
PATTERNS = ("vectors-*.f16", "graph-*.usearch", ".*.partial")
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
    graph: Graph | None


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
            graph = Graph(dim, positions)
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
                ids = _go_on(folder, onto, dim, file, graph if with_graph else None)
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
            sync(beside[new.graph_name])
            names.append(new.graph_name)
        files = {name: length_and_checksum(beside[name]) for name in names}
        for name in names:
            beside[name].rename(folder / name)
        sync(folder)
    finally:
        for left in beside.values():
            left.unlink(missing_ok=True)
    return Generation(new.token, int(ids[-1]) if len(ids) else 0, len(ids), files)


def _go_on(folder: Path, onto: Generation, dim: int, file: IO[bytes], graph: Graph | None) -> NDArray[np.int64]:
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
        "Remove it and add the picture again; 'lookalike gallery verify' names every such row.",
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
