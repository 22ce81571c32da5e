"""Locations of galleries in a folder and in a database, and items to add."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lookalike.gallery.store.base import GalleryInfo, NewItem, Store
from lookalike.gallery.store.sqlite import SqliteStore

DIM = 8
ABOUT = GalleryInfo(fingerprint="ab" * 32, dim=DIM, model="runs/some/model", image_size=64, threshold=0.625)


class Place(Protocol):
    """Where one gallery is, of either kind."""

    def create(self, about: GalleryInfo = ABOUT, **options: Any) -> Store: ...

    def open(self, write: bool = False, **options: Any) -> Store: ...

    def clear(self) -> None: ...


class Folder:
    """A gallery in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "some.gallery"

    def create(self, about: GalleryInfo = ABOUT, **options: Any) -> Store:
        return SqliteStore.create(self.folder, about, **options)

    def open(self, write: bool = False, **options: Any) -> Store:
        return SqliteStore.open(self.folder, write, **options)

    def clear(self) -> None:
        """Move what is there away, as whoever puts another one in its place does."""
        self.folder.rename(self.folder.with_name(uuid.uuid4().hex))


class Database:
    """A gallery in a database, under a name that no other test has."""

    def __init__(self, dsn: str) -> None:
        self.dsn, self.name = dsn, f"gallery_{uuid.uuid4().hex}"

    def create(self, about: GalleryInfo = ABOUT, **options: Any) -> Store:
        from lookalike.gallery.store.postgres import PostgresStore

        return PostgresStore.create(self.dsn, self.name, about, **options)

    def open(self, write: bool = False, **options: Any) -> Store:
        from lookalike.gallery.store.postgres import PostgresStore

        return PostgresStore.open(self.dsn, self.name, write, **options)

    def clear(self) -> None:
        """Drop what is there."""
        import psycopg

        with psycopg.connect(self.dsn) as db:
            db.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(psycopg.sql.Identifier(self.name)))


def units(count: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    """(count, dim) float32 rows of length 1."""
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def new_row(path: str, vector: NDArray[np.float32], **more: Any) -> NewItem:
    """A row of this vector whose content, as far as its digest says, is its path."""
    return NewItem(**{"path": path, "digest": path.encode().ljust(32, b"."), "vector": vector, **more})


def new_rows(vectors: NDArray[np.float32], start: int = 0, **more: Any) -> list[NewItem]:
    """A row for each vector, under paths that are numbered from `start`."""
    return [new_row(f"{start + i:05d}.jpg", vector, **more) for i, vector in enumerate(vectors)]
