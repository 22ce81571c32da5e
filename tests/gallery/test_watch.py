"""A gallery kept in step with a folder while files come, change and go."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ingesting import about, encoded, fill, rows_of

from lookalike.errors import InputError
from lookalike.gallery.ingest import IngestReport
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.gallery.watch import watch
from lookalike.models.pretrained import load
from lookalike.models.runtime import TorchRuntime
from small_gallery import model_folder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> TorchRuntime:
    return TorchRuntime(load(model_folder(tmp_path_factory.mktemp("runs") / "model")))


@pytest.fixture
def store(embedder: TorchRuntime, tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore.create(tmp_path / "g", about(embedder)) as made:
        yield made


def ids(store: SqliteStore) -> dict[str, int]:
    """The id of each path at one moment, while somebody writes."""
    return {row.path: row.id for row in store.rows()}


class Watching:
    """A watch in another thread, and what it has told."""

    def __init__(self) -> None:
        self.reports: list[IngestReport] = []
        self.missing: list[str] = []

    def until(self, what: Callable[[], bool]) -> None:
        """Wait for something to be so, ten seconds at most."""
        end = time.monotonic() + 10
        while not what():
            assert time.monotonic() < end, (self.reports[-1:], self.missing)
            time.sleep(0.02)

    def look(self) -> IngestReport:
        """The report of a look that began after this call."""
        count = len(self.reports) + 2
        self.until(lambda: len(self.reports) >= count)
        return self.reports[-1]


@contextmanager
def watching(store: SqliteStore, embedder: TorchRuntime, folder: Path, settle: float = 0.0) -> Iterator[Watching]:
    told, stop, failure = Watching(), threading.Event(), []

    def work() -> None:
        try:
            watch(
                store, embedder, [folder], pause=0.01, settle=settle, stop=stop, on_report=told.reports.append,
                on_missing=lambda error: told.missing.append(error.message),
            )  # fmt: skip
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
    assert not failure, failure


def test_new_changed_and_removed_files_are_followed(store: SqliteStore, embedder: TorchRuntime, tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 5)
    with watching(store, embedder, photos) as told:
        told.until(lambda: len(store) == 5)
        before = rows_of(store)
        (photos / "new").mkdir()
        (photos / "new" / "n.png").write_bytes(encoded(77))
        told.until(lambda: len(store) == 6)
        (photos / "0001.png").write_bytes(encoded(88, size=(50, 50)))
        told.until(lambda: ids(store)[str(photos / "0001.png")] != before[str(photos / "0001.png")].id)
        (photos / "0002.png").unlink()
        (photos / "0003.png").rename(photos / "renamed.png")
        told.until(lambda: str(photos / "renamed.png") in ids(store) and len(store) == 5)
        (photos / "bad.png").write_bytes(b"no picture")
        told.until(lambda: len(store.rejected()) == 1)
        (photos / "bad.png").unlink()
        told.until(lambda: store.rejected() == [])
        assert told.look().skipped == 5
    after = rows_of(store)
    assert sorted(Path(path).name for path in after) == ["0000.png", "0001.png", "0004.png", "n.png", "renamed.png"]
    assert after[str(photos / "renamed.png")].digest == before[str(photos / "0003.png")].digest
    assert after[str(photos / "new" / "n.png")].label == "new"


def test_a_file_that_is_being_written_waits_until_it_is_whole(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos", 1)
    for file in photos.iterdir():
        os.utime(file, (1e9, 1e9))
    data = encoded(5)
    growing = photos / "growing.png"
    growing.write_bytes(data[:40])
    with watching(store, embedder, photos, settle=0.6) as told:
        for end in (60, 80, len(data)):
            growing.write_bytes(data[:end])
            assert told.look().waiting == 1
        told.until(lambda: len(store) == 2)
    assert store.rejected() == []
    assert all(report.failed == 0 for report in told.reports)


def test_a_folder_that_is_gone_or_empty_all_at_once_takes_nothing_with_it(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos, elsewhere = fill(tmp_path / "photos", 3), tmp_path / "elsewhere"
    with watching(store, embedder, photos) as told:
        told.until(lambda: len(store) == 3)
        before = rows_of(store)
        photos.rename(elsewhere)
        told.until(lambda: len(told.missing) == 1)
        assert str(photos) in told.missing[0]
        photos.mkdir()  # an empty place where a disk was
        told.until(lambda: len(told.missing) == 2)
        assert rows_of(store) == before
        photos.rmdir()
        elsewhere.rename(photos)
        told.look()
        fill(photos, 1, first=9)
        told.until(lambda: len(store) == 4)
        assert before.items() <= rows_of(store).items()


def test_an_empty_folder_may_be_watched_and_no_folder_may_not(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    with watching(store, embedder, tmp_path / "photos") as told:
        assert told.look().total == 0
        fill(tmp_path / "photos", 1)
        told.until(lambda: len(store) == 1)
    for wrong in (tmp_path / "nowhere", tmp_path / "photos" / "0000.png"):
        with pytest.raises(InputError, match="no such folder"):
            watch(store, embedder, [wrong])
