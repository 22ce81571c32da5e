"""Who no longer waits is not waited for: work on pictures ends after those that it has begun."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ingesting import fill
from numpy.typing import NDArray

from lookalike.data import check
from lookalike.data import pack as packs
from lookalike.data.catalog import Catalog
from lookalike.data.image_folder import read_folder
from lookalike.gallery import scan
from lookalike.gallery.decode import DecodedImage, ImageBytes
from lookalike.gallery.scan import prepare_batches
from lookalike.gallery.sources.resolve import resolve_source
from lookalike.gallery.store.base import GalleryInfo
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.hardware import stoppable_threads


def test_threads_begin_nothing_after_the_block_is_left() -> None:
    begun: list[int] = []
    first = threading.Event()

    def work(stop: threading.Event, number: int) -> None:
        begun.append(number)
        first.set()
        assert stop.wait(60)

    def interrupted() -> None:
        with stoppable_threads(2) as (threads, stop):
            for number in range(50):
                threads.submit(work, stop, number)
            first.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 1 <= len(begun) <= 2


def test_of_a_batch_only_what_was_begun_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unwanted = threading.Event()
    decoded: list[str] = []

    def decode(content: ImageBytes, size: int, crop_mode: str) -> DecodedImage:
        decoded.append(content.source.path)
        unwanted.set()
        return DecodedImage(content.source, content.digest, np.zeros((size, size, 3), np.uint8), b"")

    monkeypatch.setattr(scan, "decode_image", decode)
    monkeypatch.setattr(scan, "cores", lambda: 2)
    folder = fill(tmp_path / "photos", 30)
    with SqliteStore.create(tmp_path / "g", GalleryInfo("f" * 64, 8)) as store:
        batches = prepare_batches(store, [resolve_source(folder)], 16, unwanted=unwanted)
        with pytest.raises(CancelledError):
            list(batches)
    assert 1 <= len(decoded) <= 2


def until_stopped(monkeypatch: pytest.MonkeyPatch, module: ModuleType, most: int) -> tuple[list[str], list[bool]]:
    """Beyond so many images, each takes until the threads are stopped.

    Returns:
        The images that were begun, and of those beyond `most`, whether the threads were stopped in time.
    """
    begun: list[str] = []
    stopped: list[bool] = []
    events: list[threading.Event] = []

    @contextmanager
    def noted(count: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
        with stoppable_threads(count) as (threads, stop):
            events.append(stop)
            yield threads, stop

    def decode(data: bytes, size: int | None = None, *, name: str = "", **options: object) -> NDArray[np.uint8]:
        begun.append(name)
        if len(begun) > most:
            stopped.append(events[-1].wait(10))
        return np.zeros((size or 8, size or 8, 3), np.uint8)

    monkeypatch.setattr(module, "stoppable_threads", noted)
    monkeypatch.setattr(module, "decode", decode)
    monkeypatch.setattr(module, "CHUNK", most)
    return begun, stopped


def interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    for name in ("cat", "dog"):
        fill(tmp_path / "set" / name, 10)
    return read_folder(tmp_path / "set")


def test_packing_stops_within_a_chunk(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, stopped = until_stopped(monkeypatch, packs, 5)
    with pytest.raises(KeyboardInterrupt):
        packs.pack(catalog, 8, cache=tmp_path / "cache", workers=1, progress=interrupt)
    assert len(begun) in (5, 6)
    assert all(stopped)


def test_checking_stops_within_a_chunk(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, stopped = until_stopped(monkeypatch, check, 5)
    with pytest.raises(KeyboardInterrupt):
        check.check(catalog, workers=1, progress=interrupt)
    assert len(begun) in (5, 6)
    assert all(stopped)
