"""What the tests of adding share: an embedder, stores, and a child process that adds and may be killed."""

from __future__ import annotations

import io
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lookalike.gallery import ingest as ingesting
from lookalike.gallery.ingest import IngestReport, ingest
from lookalike.gallery.store.base import GalleryInfo, GalleryItem, Store
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.models.pretrained import load
from lookalike.models.runtime import TorchRuntime


def about(embedder: TorchRuntime) -> GalleryInfo:
    return GalleryInfo(embedder.fingerprint, embedder.dim, image_size=embedder.size)


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    """A picture of random colours that run into one another, as a file."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, kind, **options)
    return file.getvalue()


def fill(folder: Path, count: int, *, first: int = 0) -> Path:
    """Pictures `0000.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i:04d}.png").write_bytes(encoded(i))
    return folder


def rows_of(store: Store) -> dict[str, GalleryItem]:
    """All rows by path; no path twice."""
    rows = list(store.rows())
    assert len({row.path for row in rows}) == len(rows) == len(store)
    return {row.path: row for row in rows}


def numbers(report: IngestReport) -> dict[str, int]:
    """The numbers of a report that are not 0."""
    return {key: value for key, value in vars(report).items() if value and isinstance(value, int)}


def add_and_tell(place: str, folder: str, model: str, written: int, pipe: Connection) -> None:
    """Add a folder to a gallery in few rows at a time, and tell through the pipe how many files are done."""
    ingesting.WRITE_ITEMS = written
    with SqliteStore.open(place, write=True) as store:
        embedder = TorchRuntime(load(model), "float32")
        pipe.send(-1)
        ingest(store, embedder, folder, progress=lambda done, total: pipe.send(done))
