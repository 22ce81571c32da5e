"""The index files of a gallery in a folder: its vectors as one matrix, and the graph over them.

They are made from the database and can be lost. The database names the files of one generation with their lengths and
checksums; other files are not used. A file is read into memory once in a process, and checked then. Files are not
mapped into memory: a mapped file that is cut short ends the process.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import sqlite3
import stat
import threading
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.files import atomic_file
from lookalike.gallery.store.ann_index import HnswIndex, fault_of_saved
from lookalike.gallery.store.common import MAX_INTEGER
from lookalike.gallery.store.sqlite_rows import all_finite, vectors_after
from lookalike.gallery.store.sqlite_schema import DATABASE, file_of, read_meta

PATTERNS = ("vectors-*.f16", "graph-*.usearch", "*.partial")
TOKEN = re.compile(r"[0-9a-f]{12}")
BLOCK = 1 << 22  # bytes read at a time
MAX_GROWTH, SMALL = 8, 64 << 20  # an index file has at most so many times the bytes of the database, or so many bytes

_in_memory: WeakValueDictionary[tuple[object, ...], NDArray[np.uint8]] = WeakValueDictionary()
_mutex = threading.Lock()


@dataclass(frozen=True)
class Generation:
    """The database's record of the index files.

    Args:
        token: part of the names of the files.
        highest: the greatest id in the files; 0 if there are none.
        positions: vectors in the files, including those of removed items.
        files: name → (bytes, CRC-32).
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
        """Return the record as the database stores it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Generation:
        """Parse a record.

        Raises:
            ValueError: it is not what `to_json` writes.
        """
        try:
            tree = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(tree, dict) or tree.keys() != {"token", "highest", "positions", "files"}:
            raise ValueError("wrong keys")
        if not isinstance(tree["token"], str) or not TOKEN.fullmatch(tree["token"]):
            raise ValueError("'token' is not 12 hexadecimal digits")
        for key in ("highest", "positions"):
            if type(tree[key]) is not int or not 0 <= tree[key] <= MAX_INTEGER:
                raise ValueError(f"'{key}' is not a number of items")
        if tree["positions"] > tree["highest"]:
            raise ValueError("more items than ids")
        bare = cls(tree["token"], tree["highest"], tree["positions"])
        if not isinstance(tree["files"], dict) or not tree["files"].keys() <= {bare.vectors_name, bare.graph_name}:
            raise ValueError("'files' has names that do not belong to its token")
        files = {}
        for name, numbers in tree["files"].items():
            if not isinstance(numbers, list) or [type(number) for number in numbers] != [int, int]:
                raise ValueError(f"'files' does not give length and checksum of '{name}'")
            length, total = numbers
            if not (0 <= length <= MAX_INTEGER and 0 <= total < 1 << 32):
                raise ValueError(f"'files' does not give length and checksum of '{name}'")
            files[name] = (length, total)
        return cls(bare.token, bare.highest, bare.positions, files)


def read_generation(db: sqlite3.Connection) -> Generation:
    """Read the record of the index files.

    Raises:
        InputError: it is damaged.
    """
    return generation_of(read_meta(db).generation, file_of(db))


def generation_of(text: str, database: str) -> Generation:
    """Parse the record of the index files; `database` is its path, for messages.

    Raises:
        InputError: it is damaged.
    """
    try:
        return Generation.from_json(text)
    except ValueError as error:
        raise InputError(
            f"{database}: its record of the index files is damaged ({error}).",
            "Make the files again with 'lookalike gallery compact'; no item is lost.",
        ) from None


# Reading


@dataclass(frozen=True)
class IndexedVectors:
    """The contents of index files: ids (N,) int64 ascending, vectors (N, D) float16, both read-only, and the graph."""

    ids: NDArray[np.int64]
    matrix: NDArray[np.float16]
    graph: HnswIndex | None


def open_index(
    folder: Path, generation: Generation, dim: int, *, again: bool = False
) -> tuple[IndexedVectors, dict[str, str]]:
    """Open the index files that are intact, and say what is wrong with the others. The graph needs the matrix.

    Args:
        folder: of the gallery.
        generation: the files.
        dim: numbers of a vector.
        again: read every byte, also of files that this process has in memory.
    """
    faults: dict[str, str] = {}

    def read(name: str) -> NDArray[np.uint8] | None:
        if name not in generation.files:
            return None
        try:
            return _read(folder / name, *generation.files[name], again=again)
        except OSError as error:
            faults[name] = _fault_of(error)
        except MemoryError:
            faults[name] = "is larger than the free memory"
        return None

    name, positions = generation.vectors_name, generation.positions
    vectors, saved = read(name), read(generation.graph_name)
    nothing = IndexedVectors(np.empty(0, np.int64), np.empty((0, dim), np.float16), None)
    if vectors is None or not positions:
        return nothing, faults
    if fault := _fault_of_vectors(vectors, generation, dim):
        return nothing, {**faults, name: fault}
    matrix = vectors[: positions * dim * 2].view("<f2").reshape(positions, dim)
    ids = vectors[positions * dim * 2 :].view("<i8").copy()
    graph = None
    if saved is not None:
        if fault := fault_of_saved(saved, dim, positions):
            faults[generation.graph_name] = fault
        else:
            graph = HnswIndex(dim, positions)
            graph.view(saved)
    return IndexedVectors(ids, matrix, graph), faults


def faults_by_length(folder: Path, generation: Generation) -> dict[str, str]:
    """Return what is wrong with the index files, by name, from their lengths only."""
    found = {}
    for name, (length, _) in generation.files.items():
        try:
            with _open(folder / name, length):
                pass
        except OSError as error:
            found[name] = _fault_of(error)
    return found


def _read(path: Path, length: int, expected: int, *, again: bool) -> NDArray[np.uint8]:
    """Return the bytes of a file, (length,) uint8. All stores of a process share them.

    Raises:
        OSError: the file is missing, not a plain file, or does not have this length and CRC-32.
        MemoryError: it does not fit into memory.
    """
    with _open(path, length) as file, _mutex:
        found = os.fstat(file.fileno())
        key = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, path.name, length, expected)
        data = None if again else _in_memory.get(key)
        if data is not None:
            return data
        data = np.empty(length, np.uint8)
        total = 0
        for first in range(0, length, BLOCK):
            part = data.data[first : first + BLOCK]
            if file.readinto(part) != len(part):  # type: ignore[attr-defined]
                raise OSError(errno.EIO, "was cut short while it was read")
            total = zlib.crc32(part, total)
        if total != expected:
            raise OSError(errno.EIO, "has a wrong checksum (damaged)")
        data.flags.writeable = False
        _in_memory[key] = data
        return data


def _open(path: Path, length: int) -> IO[bytes]:
    """Open an index file.

    Raises:
        OSError: it is not a plain file of this length, or is longer than the database can be the reason for.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    handle = os.open(path, flags)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is not a plain file")
        if found.st_size != length:
            raise OSError(errno.EIO, f"has {found.st_size:,} bytes of {length:,}")
        if length > max(SMALL, MAX_GROWTH * path.with_name(DATABASE).stat().st_size):
            raise OSError(errno.EFBIG, f"has {length:,} bytes, more than all items of the database need")
        return os.fdopen(handle, "rb", buffering=0)
    except BaseException:
        os.close(handle)
        raise


def _fault_of(error: OSError) -> str:
    """Return what is wrong with a file, in words that follow its name."""
    if error.errno == errno.ENOENT:
        return "is missing"
    if error.errno in {errno.ELOOP, errno.ENXIO, errno.EMLINK}:
        return "is not a plain file"
    if error.errno in {errno.EIO, errno.EINVAL, errno.EFBIG} and error.filename is None:
        return str(error.strerror)
    return f"cannot be read ({error.strerror})"


def _fault_of_vectors(data: NDArray[np.uint8], generation: Generation, dim: int) -> str:
    """Return what is wrong with a file of vectors that has the right checksum; empty if it can be used."""
    positions = generation.positions
    if len(data) != positions * (2 * dim + 8):
        return f"does not hold {positions:,} vectors of {dim} numbers"
    ids = data[positions * dim * 2 :].view("<i8")
    if int(ids[0]) < 1 or int(ids[-1]) != generation.highest or not (ids[1:] > ids[:-1]).all():
        return "does not have the ids that the database records"
    if not all_finite(data[: positions * dim * 2].view("<f2")):
        return "holds a vector that is not finite"
    return ""


# Writing


def make_generation(folder: Path, db: sqlite3.Connection, dim: int, *, onto: Generation | None) -> Generation:
    """Write new index files of all items. They are in use once the database names them.

    Args:
        folder: of the gallery.
        db: connection to the database.
        dim: numbers of a vector.
        onto: intact index files to extend, which keep their positions; None: start from scratch.

    Raises:
        InputError: the files cannot be written, or a vector in the database is damaged.
    """
    new = Generation()
    graph = HnswIndex(dim)
    ids = np.empty(0, np.int64)
    with (
        atomic_file(folder / new.vectors_name, durable=True) as vectors_file,
        atomic_file(folder / new.graph_name, durable=True) as graph_file,
    ):
        with vectors_file.open("wb") as file:
            if onto is not None:
                ids = _copy(folder, onto, dim, file, graph)
            for more, vectors in vectors_after(db, dim, onto.highest if onto is not None else 0):
                file.write(vectors.data)
                graph.add(vectors)
                ids = np.concatenate([ids, more])
            file.write(ids.tobytes())
        graph.save(graph_file)
        files = {
            new.vectors_name: _length_and_checksum(vectors_file),
            new.graph_name: _length_and_checksum(graph_file),
        }
    return Generation(new.token, int(ids[-1]) if len(ids) else 0, len(ids), files)


def _copy(folder: Path, onto: Generation, dim: int, file: IO[bytes], graph: HnswIndex) -> NDArray[np.int64]:
    """Copy the vectors of index files into a new file and an empty graph; return their ids.

    Raises:
        OSError: the files cannot be read any more.
    """
    indexed, faults = open_index(folder, onto, dim)
    if onto.vectors_name in faults:
        raise OSError(errno.EIO, faults[onto.vectors_name], str(folder / onto.vectors_name))
    file.write(indexed.matrix.data)
    if indexed.graph is not None:
        graph.load(indexed.graph.data)
    else:
        graph.add(indexed.matrix)
    return indexed.ids


def _length_and_checksum(path: Path) -> tuple[int, int]:
    length = total = 0
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(block):
            total = zlib.crc32(memoryview(block)[:got], total)
            length += got
    return length, total


def sweep(folder: Path, generation: Generation) -> None:
    """Remove index files that the database does not name. Hold the lock of `IndexMaintenance`."""
    for pattern in PATTERNS:
        for path in folder.glob(pattern):
            if path.name not in generation.files:
                with suppress(OSError):
                    path.unlink()
