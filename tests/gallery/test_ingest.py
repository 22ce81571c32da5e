"""Pictures into a store: what is new is added, what is there is skipped, and nothing is lost on the way."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingesting import about, add_and_tell, encoded, fill, numbers, rows_of
from numpy.typing import NDArray
from PIL import Image
from stores import Place

from lookalike.concurrency import prefetch
from lookalike.data.registry import load_dataset
from lookalike.errors import InputError
from lookalike.gallery.ingest import IngestReport, ingest
from lookalike.gallery.query import query_vectors
from lookalike.gallery.store.base import Store
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.image import decode, dhash
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.runtime import TorchRuntime
from small_gallery import album, model_folder
from small_sets import class_folders, zip_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture(scope="module")
def embedder(model: Path) -> TorchRuntime:
    return TorchRuntime(load(model))


@pytest.fixture
def store(place: Place, embedder: TorchRuntime) -> Iterator[Store]:
    """A new, empty store of both kinds in turn, for vectors of this model."""
    with place.create(about(embedder)) as made:
        yield made


def touch(path: Path, seconds: int) -> None:
    """Date a file so many seconds later."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + seconds * 10**9))


def no_threads_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("lookalike")]


# What a row holds


def test_a_row_says_all_that_is_to_be_known_of_a_file(
    store: Store, embedder: TorchRuntime, model: Path, tmp_path: Path
) -> None:
    photos = album(tmp_path / "photos")
    seen: list[tuple[int, int]] = []
    report = ingest(store, embedder, photos, progress=lambda done, total: seen.append((done, total)))
    assert numbers(report) == {"added": 12}
    assert report.total == 12
    assert report.seconds > 0
    assert seen[-1] == (12, 12)
    rows = rows_of(store)
    files = sorted(photos.rglob("*.png"))
    assert sorted(rows) == [str(file) for file in files]
    found = store.vectors([rows[str(file)].id for file in files])
    assert (found * load(model).embed(files)).sum(1).min() > 0.999  # bfloat16, and a network of random weights
    for file in files:
        row, stat = rows[str(file)], file.stat()
        assert (row.size, row.modified, row.label) == (stat.st_size, stat.st_mtime_ns, file.parent.name)
        assert len(row.digest) == 32
        pixels = decode(file.read_bytes(), embedder.size)
        assert row.dhash == int(dhash(pixels[None])[0])
        thumbnail = store.thumbnail(row.id)
        assert thumbnail is not None
        shown = np.asarray(Image.open(io.BytesIO(thumbnail)), np.float32)
        assert shown.shape == (64, 64, 3)
        assert np.abs(shown - np.asarray(Image.open(file), np.float32)).mean() < 8


def test_a_large_photograph_is_seen_upright_with_a_small_thumbnail_that_tells_no_secrets(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "A camera of Ann's"
    (tmp_path / "a").mkdir()
    large, small = tmp_path / "a" / "large.jpg", tmp_path / "a" / "small.jpg"
    large.write_bytes(encoded(1, "JPEG", (1200, 900), exif=exif))
    small.write_bytes(encoded(2, "JPEG", (60, 40), exif=exif))
    ingest(store, embedder, [large, small])
    for path, longer in ((large, 150), (small, 60)):  # 1200 / 8: decoded smaller, for a network of 32 pixels
        row = rows_of(store)[str(path)]
        thumbnail = store.thumbnail(row.id)
        assert thumbnail is not None
        assert b"Ann" not in thumbnail
        assert len(thumbnail) < 10_000
        shown = decode(thumbnail)
        assert shown.shape[0] == longer > shown.shape[1]
        whole = decode(path.read_bytes(), shown.shape[:2])
        assert np.abs(shown.astype(np.float32) - whole).mean() < 6
        pixels = decode(path.read_bytes(), embedder.size)
        assert embedder.embed(pixels[None])[0] @ store.vectors([row.id])[0] > 0.9999


def test_pictures_are_squashed_where_the_model_was_trained_on_squashed_ones(model: Path, tmp_path: Path) -> None:
    cutting = load(model)
    squashing = ImageModel(cutting.network, cutting.config.model_copy(update={"crop_mode": "squash"}))
    wide = tmp_path / "photos" / "wide.png"
    wide.parent.mkdir()
    wide.write_bytes(encoded(5, size=(120, 30)))
    embedder = TorchRuntime(squashing, "float32")
    with SqliteStore.create(tmp_path / "some.gallery", about(embedder)) as store:
        ingest(store, embedder, wide.parent)
        (row,) = rows_of(store).values()
        kept = store.vectors([row.id])[0]
        vectors, _ = query_vectors([wide], store, lambda: embedder)
    (expected,), (cut,) = squashing.embed([wide]), cutting.embed([wide])
    assert expected @ cut < 0.999
    assert min(kept @ expected, vectors[0] @ expected) > 0.9999


def test_a_small_jpeg_is_its_own_thumbnail(store: Store, embedder: TorchRuntime, tmp_path: Path) -> None:
    file = tmp_path / "1.jpg"
    file.write_bytes(encoded(1, "JPEG"))
    ingest(store, embedder, file)
    (row,) = store.rows()
    assert store.thumbnail(row.id) == file.read_bytes()


# Again, changed, copied


def test_what_is_there_is_neither_read_nor_embedded_again(
    store: Store, embedder: TorchRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = album(tmp_path / "photos")
    ingest(store, embedder, photos)
    before = rows_of(store)
    monkeypatch.setattr("lookalike.gallery.sources.base.read_file", lambda path: pytest.fail(f"{path} was read"))
    assert numbers(ingest(store, embedder, [photos, photos / "cat", photos / "dog" / "0.png"])) == {"skipped": 17}
    assert rows_of(store) == before


def test_what_changed_is_added_again_and_keeps_what_was_said_of_it(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos", 6)
    ingest(store, embedder, photos)
    before = rows_of(store)
    changed, touched = photos / "0001.png", photos / "0002.png"
    store.update([before[str(changed)].id, before[str(touched)].id], "mine", {"stars": 5})
    changed.write_bytes(encoded(99))
    touch(changed, 1)
    touch(touched, 7)
    assert numbers(ingest(store, embedder, photos)) == {"replaced": 2, "skipped": 4, "reused": 1}
    after = rows_of(store)
    assert after[str(touched)].digest == before[str(touched)].digest
    assert after[str(changed)].digest != before[str(changed)].digest
    for path in (changed, touched):
        assert (after[str(path)].label, dict(after[str(path)].metadata)) == ("mine", {"stars": 5})
        assert after[str(path)].modified == path.stat().st_mtime_ns
    vector = embedder.embed(decode(changed.read_bytes(), embedder.size)[None])[0]
    assert store.vectors([after[str(changed)].id])[0] @ vector > 0.9999
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 6}


def test_a_copy_gets_a_row_of_its_own_without_being_embedded(
    store: Store, embedder: TorchRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = fill(tmp_path / "photos", 3)
    ingest(store, embedder, photos)
    shutil.copytree(photos, tmp_path / "copies")
    monkeypatch.setattr(embedder, "embed", lambda pictures: pytest.fail("embedded again"))
    assert numbers(ingest(store, embedder, tmp_path / "copies")) == {"added": 3, "reused": 3}
    rows = rows_of(store)
    for name in ("0000.png", "0001.png", "0002.png"):
        one, other = rows[str(photos / name)], rows[str(tmp_path / "copies" / name)]
        assert (one.digest, one.dhash) == (other.digest, other.dhash)
        assert store.thumbnail(one.id) == store.thumbnail(other.id) != b""
        assert np.array_equal(store.vectors([one.id]), store.vectors([other.id]))


def test_copies_within_one_run_are_all_there(store: Store, embedder: TorchRuntime, tmp_path: Path) -> None:
    data = encoded(1)
    (tmp_path / "p").mkdir()
    for i in range(10):
        (tmp_path / "p" / f"{i}.png").write_bytes(data)
    assert numbers(ingest(store, embedder, tmp_path / "p"))["added"] == 10
    assert len({row.digest for row in rows_of(store).values()}) == 1


def test_a_damaged_file_is_tried_again_once_it_has_changed(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos", 3)
    bad = photos / "bad.png"
    bad.write_bytes(encoded(5)[:50])
    report = ingest(store, embedder, photos)
    assert numbers(report) == {"added": 3, "failed": 1}
    assert [(one.path, one.size) for one in report.failed_files] == [(str(bad), 50)]
    assert store.rejected() == report.failed_files
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 3, "failed": 1, "failed_before": 1}
    bad.write_bytes(encoded(5))
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 3, "added": 1}
    assert store.rejected() == []


def test_a_file_that_gets_damaged_keeps_its_row_and_is_forgiven_when_it_is_back(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos", 2)
    file = photos / "0000.png"
    stat, data = file.stat(), file.read_bytes()
    ingest(store, embedder, photos)
    file.write_bytes(data[:60])
    touch(file, 5)
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 1, "failed": 1}
    assert len(rows_of(store)) == 2
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 2}
    assert store.rejected() == []


# Labels


def test_folders_label_new_rows_only_and_a_given_label_labels_all(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = album(tmp_path / "photos", each=1)
    fill(photos / "train" / "fox" / "deep", 1)  # beside classes: no split
    fill(photos, 1)
    ingest(store, embedder, photos)
    labels = {Path(path).relative_to(photos).as_posix(): row.label for path, row in rows_of(store).items()}
    assert labels == {
        "cat/0.png": "cat", "dog/0.png": "dog", "emu/0.png": "emu", "train/fox/deep/0000.png": "train",
        "0000.png": None,
    }  # fmt: skip
    store.update([row.id for row in store.rows()], "kitten")
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 5}
    assert {row.label for row in store.rows()} == {"kitten"}
    assert numbers(ingest(store, embedder, photos, label="beast")) == {"skipped": 5, "relabelled": 5}
    assert {row.label for row in store.rows()} == {"beast"}


def test_folder_labels_can_be_left_out(store: Store, embedder: TorchRuntime, tmp_path: Path) -> None:
    ingest(store, embedder, album(tmp_path / "photos", each=1), folder_labels=False)
    assert {row.label for row in store.rows()} == {None}


# In step


def test_rows_of_files_that_are_gone_are_removed_only_when_asked(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos, others = fill(tmp_path / "photos", 4), fill(tmp_path / "photos-too", 2, first=50)
    (photos / "bad.png").write_bytes(b"no picture")
    ingest(store, embedder, [photos, others])
    for path in (photos / "0000.png", photos / "bad.png", others / "0050.png"):
        path.unlink()
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 3}
    assert len(store) == 6
    assert numbers(ingest(store, embedder, photos, sync=True)) == {"skipped": 3, "removed": 1}
    assert str(others / "0050.png") in rows_of(store)
    assert store.rejected() == []


def test_a_folder_that_lost_everything_at_once_removes_nothing(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos", 4)
    ingest(store, embedder, photos)
    for file in photos.iterdir():
        file.unlink()
    with pytest.raises(InputError, match="has 4"):
        ingest(store, embedder, photos, sync=True)
    assert len(store) == 4
    with pytest.raises(InputError, match=r"\*\.png"):
        ingest(store, embedder, str(fill(photos, 1) / "*.png"), sync=True)


# Stopping


def test_a_run_that_is_interrupted_goes_on_where_it_was(
    store: Store, embedder: TorchRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.gallery.ingest.WRITE_ITEMS", 32)
    photos = fill(tmp_path / "photos", 400)

    def interrupt(done: int, total: int) -> None:
        assert total == 400
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(store, embedder, photos, progress=interrupt)
    assert no_threads_left()
    there = len(rows_of(store))
    assert 100 <= there < 400
    assert numbers(ingest(store, embedder, photos)) == {"skipped": there, "added": 400 - there}


class Breaking(TorchRuntime):
    """One that fails at its third batch."""

    batches = 0

    def embed(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches += 1
        if self.batches == 3:
            raise RuntimeError("the device is gone")
        return super().embed(pictures)


def test_an_error_in_one_stage_stops_the_others(store: Store, model: Path, tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 300)
    with pytest.raises(RuntimeError, match="the device is gone"):
        ingest(store, Breaking(load(model)), photos)
    assert no_threads_left()
    assert numbers(ingest(store, TorchRuntime(load(model)), photos))["added"] >= 300 - len(rows_of(store))
    assert len(rows_of(store)) == 300


def test_a_store_that_cannot_be_written_stops_everything(
    embedder: TorchRuntime, store: Store, place: Place, tmp_path: Path
) -> None:
    with place.open() as reading, pytest.raises(InputError, match="for reading"):
        ingest(reading, embedder, fill(tmp_path / "photos", 300))
    assert no_threads_left()
    assert len(store) == 0


def killed(place: Path, photos: Path, model: Path, *, at: list[int]) -> None:
    """Add in child processes, each killed as soon as it has said that so many files are done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "lookalike.gallery.ingest", "lookalike.models.pretrained"]
    )  # found without sys.path
    for limit in at:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=add_and_tell, args=(str(place), str(photos), str(model), 16, theirs))
        child.start()
        theirs.close()
        done = 0
        try:
            while (done := max(done, ours.recv())) < limit:
                pass
            child.kill()
            while True:  # what it said before it died
                done = max(done, ours.recv())
        except EOFError:
            child.join()
        with SqliteStore.open(place) as store:
            assert len(rows_of(store)) >= done, "what was said to be done is not there"
            assert store.check() == []


def check_whole(place: Path, photos: Path, model: Path) -> None:
    """A last run without a kill: everything is there, once, with the right vector."""
    embedder = TorchRuntime(load(model))
    with SqliteStore.open(place, write=True) as store:
        ingest(store, embedder, photos)
        rows = rows_of(store)
        files = sorted(photos.iterdir())
        assert sorted(rows) == [str(file) for file in files]
        pixels = np.stack([decode(file.read_bytes(), embedder.size) for file in files])
        found = store.vectors([rows[str(file)].id for file in files])
        assert (found * embedder.embed(pixels)).sum(1).min() > 0.999


def test_killed_it_has_lost_nothing_that_it_said_was_done(model: Path, embedder: TorchRuntime, tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 200)
    SqliteStore.create(tmp_path / "g", about(embedder)).close()
    killed(tmp_path / "g", photos, model, at=[1, 120])
    check_whole(tmp_path / "g", photos, model)


@pytest.mark.slow
def test_killed_twelve_times_it_has_lost_nothing(model: Path, embedder: TorchRuntime, tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 800)
    SqliteStore.create(tmp_path / "g", about(embedder)).close()
    killed(tmp_path / "g", photos, model, at=np.random.default_rng(0).integers(0, 750, 12).tolist())
    check_whole(tmp_path / "g", photos, model)


# Refusals


def test_another_models_embedder_is_refused(store: Store, tmp_path: Path) -> None:
    other = TorchRuntime(load(model_folder(tmp_path / "other", seed=1)))
    with pytest.raises(InputError, match=f"the model {other.fingerprint[:12]}") as caught:
        ingest(store, other, fill(tmp_path / "photos", 1))
    assert store.about.fingerprint[:12] in caught.value.remedy
    assert len(store) == 0


def test_nothing_is_added_when_one_of_the_sources_is_not_there(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos", 2)
    (tmp_path / "empty").mkdir()
    for wrong, words in (
        (tmp_path / "gone", "gone"), (str(photos / "*.gif"), r"\*\.gif"), (7, "7"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            ingest(store, embedder, [photos, wrong])  # type: ignore[list-item]
    for nothing in (tmp_path / "empty", []):
        with pytest.raises(InputError):
            ingest(store, embedder, nothing)
    assert len(store) == 0


# The link between the stages


def counted(limit: int, closed: list[int]) -> Generator[int]:
    try:
        for i in range(limit):
            yield i
            if i == 50:
                raise ValueError("fifty")
    finally:
        closed.append(1)


def test_work_ahead_arrives_in_order_and_its_error_after_it() -> None:
    closed: list[int] = []
    with prefetch(counted(40, closed), 2) as items:
        assert list(items) == list(range(40))
    got = []
    with pytest.raises(ValueError, match="fifty"), prefetch(counted(99, closed), 2) as items:  # noqa: PT012
        for item in items:
            got.append(item)
    assert got == list(range(51))
    with pytest.raises(KeyError), prefetch(counted(99, closed), 2) as items:  # noqa: PT012
        assert next(items) == 0
        raise KeyError
    assert len(closed) == 3
    assert no_threads_left()


def test_a_report_adds_up() -> None:
    assert IngestReport(added=1, replaced=2, skipped=3, failed=4, waiting=5, failed_before=3, reused=2).total == 15


def test_a_zip_and_a_parquet_file_in_the_folder_keep_their_rows(
    store: Store, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos", 2)
    packed, shard = zip_of(class_folders(tmp_path / "pets"), photos / "pets.zip"), photos / "shard.parquet"
    pq.write_table(pa.table({"jpg": [encoded(i) for i in range(3)]}), shard)
    odd = photos / "no#7"
    fill(odd, 1)
    catalog = load_dataset(packed)
    ingest(store, embedder, [photos, catalog, shard])
    assert len(store) == 3 + 12 + 3
    assert numbers(ingest(store, embedder, photos, sync=True)) == {"skipped": 3}
    assert len(store) == 18
    pq.write_table(pa.table({"jpg": [encoded(i) for i in range(2)]}), shard)
    shutil.rmtree(odd)
    assert numbers(ingest(store, embedder, photos, sync=True)) == {"skipped": 2, "removed": 2}
    packed.write_bytes(b"cut short")  # damaged: nobody knows what was in it
    assert numbers(ingest(store, embedder, photos, sync=True)) == {"skipped": 2}
    packed.unlink()
    assert numbers(ingest(store, embedder, photos, sync=True)) == {"skipped": 2, "removed": 12}
    assert len(store) == 4


def test_files_of_other_kinds_are_counted(store: Store, embedder: TorchRuntime, tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 2)
    for name in ("1.HEIC", "b/2.heic", "b/film.MOV", "notes", ".hidden.heic", "Thumbs.db"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"")
    (photos / "b" / "3.jfif").write_bytes(encoded(5, "JPEG"))
    (photos / "b" / "4.JPE").write_bytes(encoded(6, "JPEG"))
    report = ingest(store, embedder, photos)
    assert report.added == 4
    assert report.passed_over == {".heic": 2, ".mov": 1, "(none)": 1}
    for folder, words in ((photos / "none", "none"), (photos / "more", r"1 \.avif")):
        folder.mkdir()
        (folder / "x.avif").write_bytes(b"") if folder.name == "more" else None
        with pytest.raises(InputError, match=words):
            ingest(store, embedder, folder)


def test_a_lack_of_memory_does_not_reject_a_file_for_ever(
    store: Store, embedder: TorchRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = fill(tmp_path / "photos", 2)

    def lacking(*arguments: object, **more: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("lookalike.gallery.decode.load_image", lacking)
        assert numbers(ingest(store, embedder, photos)) == {"failed": 2}
    assert {one.reason for one in store.rejected()} == {"not enough memory to decode it"}
    assert numbers(ingest(store, embedder, photos)) == {"added": 2}
    assert store.rejected() == []


def test_times_that_64_bits_do_not_hold(
    store: Store, embedder: TorchRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = fill(tmp_path / "photos", 2)
    os.utime(photos / "0000.png", ns=(0, -(10**18)))  # 1938
    monkeypatch.setattr(
        "lookalike.gallery.sources.base.modified_ns", lambda about: min(about.st_mtime_ns * 9, 2**63 - 1)
    )
    assert numbers(ingest(store, embedder, photos)) == {"added": 2}
    assert {row.modified for row in store.rows()} == {-9 * 10**18, 2**63 - 1}
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 2}
