"""A gallery gets another model: stopped and continued, switched at once, and nothing is lost silently."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import ABOUT, Folder, Place, new_rows, units

import lookalike
from lookalike.errors import InputError
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.item_files import GoneError, load_item
from lookalike.gallery.reembed import OutOfReachError
from lookalike.gallery.store import sqlite_rows
from lookalike.gallery.store.base import FailedFile, NewItem, ReplacedError
from lookalike.gallery.store.staged_vectors import open_staged
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig
from small_gallery import ANIMALS, SIZE, album, model_folder, picture

NEXT = replace(ABOUT, fingerprint="cd" * 32, dim=12, model="runs/next/model", image_size=96, threshold=0.5)


# What every store does


@pytest.mark.parametrize("about", [NEXT, replace(NEXT, dim=ABOUT.dim)])
def test_vectors_are_replaced_at_once(place: Place, about: object) -> None:
    about = replace(NEXT, dim=about.dim)  # type: ignore[attr-defined]
    old, new = units(30), units(31, about.dim, seed=1)
    with place.create() as store:
        ids = store.add(new_rows(old, label="cat", metadata={"n": 1}, thumbnail=b"\xff\xd8 jpeg"))
        store.calibrated(replace(ABOUT, own_threshold=0.7, own_rows=30, own_labels=2))
        with place.open(write=True) as other, place.open() as reader:
            reader.search(old[0], 1)
            with store.reembedding(about) as work:
                work.add(ids[:20], new[:20])
                assert store.search(old[3], 1)[0][0].id == ids[3]
                assert not work.switch({})
                assert reader.search(old[3], 1)[0][0].score == pytest.approx(1, abs=1e-3)
            (late,) = other.add(new_rows(units(1, seed=9), start=100))
            with store.reembedding(about) as work:
                assert sorted(work.ids().tolist()) == ids[:20]
                work.add(ids[20:], new[20:30])
                assert not work.switch({})  # `late` has no new vector
                work.add([late], new[30:])
                assert work.switch({})
            for use in (lambda: reader.search(old[0], 1), lambda: reader.vectors(ids), lambda: other.remove([ids[0]]),
                        lambda: other.add(new_rows(old[:1], start=200)), lambda: list(reader.rows())):  # fmt: skip
                with pytest.raises(ReplacedError):
                    use()
        assert store.about == about
        for again in (store, place.open()):
            np.testing.assert_allclose(again.vectors([*ids, late]), new, atol=2e-3)
            assert [hit.id for result in again.search(new, 1) for hit in result] == [*ids, late]
            (item,) = again.get([ids[4]])
            assert item is not None
            assert (item.path, item.label, item.metadata) == ("00004.jpg", "cat", {"n": 1})
            assert again.thumbnail(ids[4]) == b"\xff\xd8 jpeg"
            assert again.about.own_threshold is None
            assert again.check() == []
        store.add(new_rows(units(1, about.dim, seed=5), start=300))
        assert len(store) == 32


def test_lost_items_are_removed_and_recorded(place: Place) -> None:
    with place.create() as store:
        ids = store.add(new_rows(units(5)))
        lost = {ids[1]: FailedFile("00001.jpg", "its file is gone")}
        with store.reembedding(NEXT) as work:
            work.add([ids[0], *ids[2:]], units(4, NEXT.dim))
            assert work.switch(lost)
        assert [item.id for item in store.rows()] == [ids[0], *ids[2:]]
        assert store.rejected() == list(lost.values())


def test_large_galleries_have_an_index_of_the_new_vectors(place: Place) -> None:
    with place.create(exact_below=50) as store:
        ids = store.add(new_rows(units(400)))
    new = units(400, NEXT.dim, seed=1)
    with place.open(write=True, exact_below=50) as store:
        with store.reembedding(NEXT) as work:
            work.add(ids, new)
            assert work.switch({})
        result = store.search(new[:20], 3)
        assert [one[0].id for one in result] == ids[:20]
        assert not any(one.exact for one in result)
        assert store.check() == []


def test_another_model_begins_anew(place: Place) -> None:
    with place.create() as store:
        ids = store.add(new_rows(units(3)))
        with store.reembedding(NEXT) as work:
            work.add(ids[:1], units(1, NEXT.dim))
        with store.reembedding(replace(NEXT, fingerprint="ef" * 32)) as work:
            assert not len(work.ids())
        with pytest.raises(InputError, match="length 1"), store.reembedding(NEXT) as work:
            work.add(ids[:1], 2 * units(1, NEXT.dim))


def test_a_reader_cannot_replace_vectors(place: Place) -> None:
    place.create().close()
    with place.open() as store, pytest.raises(InputError, match="reading"), store.reembedding(NEXT):
        pass


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_records_after_a_damaged_one_do_not_count(tmp_path: Path, damage: str) -> None:
    vectors = units(6, NEXT.dim).astype(np.float16)
    with open_staged(tmp_path, NEXT) as staged:
        staged.add(np.arange(1, 7), vectors)
        with pytest.raises(InputError, match="another process"), open_staged(tmp_path, NEXT):
            pass
    (path,) = tmp_path.glob("reembed-*.vectors")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-3]
    else:
        data[-3] ^= 1
    path.write_bytes(data)
    with open_staged(tmp_path, NEXT) as staged:
        assert staged.ids().tolist() == [1, 2, 3, 4, 5]
        staged.add(np.array([6]), vectors[5:])
    with open_staged(tmp_path, NEXT) as staged:
        assert [(id, vector) for id, vector in staged.vectors()] == [
            (id, vectors[id - 1].astype("<f2").tobytes()) for id in range(1, 7)
        ]


def test_a_vector_that_is_lost_or_damaged_is_computed_again(tmp_path: Path) -> None:
    vectors = units(4, NEXT.dim).astype(np.float16)
    with open_staged(tmp_path, NEXT) as staged:
        staged.add(np.arange(1, 5), vectors)
        (path,) = tmp_path.glob("reembed-*.vectors")
        with path.open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"???")
        assert staged.ids().tolist() == [1, 2, 3]
        staged.add(np.array([4]), vectors[3:])
        assert staged.ids().tolist() == [1, 2, 3, 4]


def test_vectors_of_thumbnails_count_until_the_end_of_the_call(place: Place) -> None:
    with place.create() as store:
        ids = store.add(new_rows(units(3)))
        with store.reembedding(NEXT) as work:
            work.add(ids[:2], units(2, NEXT.dim), [False, True])
            assert sorted(work.ids().tolist()) == ids[:2]
        new = units(3, NEXT.dim, seed=4)
        with store.reembedding(NEXT) as work:
            assert work.ids().tolist() == ids[:1]
            work.add(ids[1:], new[1:], [True, False])
            assert work.switch({})
        np.testing.assert_allclose(store.vectors(ids[1:]), new[1:], atol=2e-3)


def test_what_a_stopped_call_has_kept_can_be_discarded(place: Place) -> None:
    with place.create() as store, place.open(write=True) as other:
        ids = store.add(new_rows(units(3)))
        with store.reembedding(NEXT) as work:
            work.add(ids[:2], units(2, NEXT.dim))
            with pytest.raises(InputError):
                other.compact(discard_reembed=True)
            assert work.ids().tolist() == ids[:2]
        other.compact()
        with store.reembedding(NEXT) as work:
            assert work.ids().tolist() == ids[:2]
        other.compact(discard_reembed=True)
        assert other.check() == []
        with store.reembedding(NEXT) as work:
            assert len(work.ids()) == 0


def test_an_incomplete_switch_rewrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Folder(tmp_path)
    with place.create() as store:
        ids = store.add(new_rows(units(3)))
        with store.reembedding(NEXT) as work:
            work.add(ids[:2], units(2, NEXT.dim))
            monkeypatch.setattr(sqlite_rows, "replace_vectors", lambda *_: pytest.fail("vectors were rewritten"))
            assert not work.switch({})


def test_items_that_others_have_removed_are_not_recorded(place: Place) -> None:
    with place.create() as store:
        ids = store.add(new_rows(units(3)))
        lost = {id: FailedFile(f"{number:05d}.jpg", "its file is gone") for number, id in enumerate(ids[:2])}
        with store.reembedding(NEXT) as work:
            work.add(ids[2:], units(1, NEXT.dim))
            store.remove(ids[:1])
            assert work.switch(lost)
        assert [file.path for file in store.rejected()] == ["00001.jpg"]


def test_a_store_with_the_old_model_does_not_judge_the_new_vectors(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    with place.create() as store, place.open(write=True) as writer, place.open() as reader:
        ids = store.add(new_rows(units(3)))
        with store.reembedding(NEXT) as work:
            work.add(ids, units(3, NEXT.dim))
            assert work.switch({})
        for use in (reader.check, writer.check, writer.compact):
            with pytest.raises(ReplacedError):
                use()
        assert store.check() == []


# The files of items


def test_items_are_read_from_files_zips_and_tables(tmp_path: Path) -> None:
    data = [picture(tmp_path / f"{i}.png", i).read_bytes() for i in range(5)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/0.png", data[0])
    table = pa.table({"image": [{"bytes": one, "path": None} for one in data], "label": [0] * 5})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=2)
    assert load_item(str(tmp_path / "1.png")) == data[1]
    assert load_item((tmp_path / "1.png").as_uri()) == data[1]
    assert load_item(f"{tmp_path}/a.zip/in/0.png") == data[0]
    assert [load_item(f"{tmp_path}/b.parquet#{row}") for row in (3, 0, 4)] == [data[3], data[0], data[4]]
    for path in ("c.png", "a.zip/in/1.png", "b.parquet#5", "b.parquet#x"):
        with pytest.raises(InputError):
            load_item(f"{tmp_path}/{path}")
    with pytest.raises(InputError, match="uploaded"):
        load_item("upload:00")


def test_a_file_that_cannot_be_reached_is_not_gone(tmp_path: Path) -> None:
    data = picture(tmp_path / "0.png", 0).read_bytes()
    for name in ("a.zip", "b.parquet"):
        (tmp_path / name).write_bytes(b"PK cut short")
    (tmp_path / "loop").symlink_to("loop")
    for path in (f"{tmp_path}/a.zip/0.png", f"{tmp_path}/b.parquet#0", f"{tmp_path}/loop", "nowhere://x/0.png"):
        with pytest.raises(OSError, match=r"\w"):
            load_item(path)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("0.png", data)
    for path in (f"{tmp_path}/1.png", f"{tmp_path}/c.zip/1.png", f"file://{tmp_path}/1.png"):
        with pytest.raises(GoneError):
            load_item(path)


def test_a_damaged_member_of_a_zip_is_a_fault_of_one_image(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("0.png", "1.png"):
            archive.writestr(name, b"0123456789" * 100)
        place = archive.getinfo("1.png").header_offset + 30 + len("1.png")
    whole = (tmp_path / "a.zip").read_bytes()
    for damage in (b"\xff\xff", b"\x06\x06"):
        (tmp_path / "a.zip").write_bytes(whole[:place] + damage + whole[place + 2 :])
        with pytest.raises(InputError, match="zip"):
            load_item(f"{tmp_path}/a.zip/1.png")
    assert len(load_item(f"{tmp_path}/a.zip/0.png")) == 1000


def test_a_row_group_is_not_read_as_a_whole(tmp_path: Path) -> None:
    images = [bytes([number % 251]) * 20_000 for number in range(1000)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    path = f"{tmp_path}/a.parquet#"
    tracemalloc.start()
    try:
        for number in (4, 70, 200, 199, 5, 999):
            assert load_item(f"{path}{number}") == images[number]
        assert tracemalloc.get_traced_memory()[1] < 8e6  # of 20e6
    finally:
        tracemalloc.stop()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(load_item, [f"{path}{number}" for number in range(1000)])) == images


# The gallery


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and another one with another size of images and another dimension."""
    folder = tmp_path_factory.mktemp("models")
    config = ModelConfig(
        name="weave",
        options={"widths": [16, 48], "pairs": [1, 1]},
        image_size=SIZE + 16,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=ANIMALS,
        class_ids=ANIMALS,
        match_threshold=0.25,
    )
    ImageModel(create_model(config.name, config.num_classes, config.options), config).save_pretrained(folder / "new")
    return model_folder(folder / "old"), folder / "new"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return album(tmp_path / "photos")


@pytest.fixture
def filled(models: tuple[Path, Path], photos: Path, tmp_path: Path) -> Path:
    with Gallery.create(tmp_path / "photos.gallery", models[0]) as gallery:
        gallery.add(photos)
        gallery.store.calibrated(replace(gallery.about, own_threshold=0.9, own_rows=12, own_labels=3))
    return tmp_path / "photos.gallery"


def test_a_gallery_gets_another_model(models: tuple[Path, Path], filled: Path, photos: Path) -> None:
    done = []
    with Gallery.open(filled, write=True) as gallery:
        before = list(gallery.store.rows())
        report = gallery.reembed(models[1], progress=lambda *values: done.append(values))
        assert (report.items, report.embedded, report.kept, report.thumbnails) == (12, 12, 0, 0)
        assert done[-1] == (12, 12)
        assert gallery.search(photos / "cat" / "0.png", k=3)  # with the new model
    with Gallery.open(filled) as gallery:
        new = lookalike.load(models[1])
        assert list(gallery.store.rows()) == before
        assert gallery.about.fingerprint == new.fingerprint
        assert gallery.about.model == str(models[1])
        assert (gallery.about.dim, gallery.about.image_size) == (new.embedding_dim, SIZE + 16)
        assert (gallery.about.threshold, gallery.about.own_threshold) == (0.25, None)
        vectors = new.embed([item.path for item in before])
        np.testing.assert_allclose(gallery.vectors([item.id for item in before]), vectors, atol=5e-3)
        with pytest.raises(InputError, match="reading"):
            gallery.reembed(models[0])
    assert not list(filled.glob("reembed-*.vectors"))


def test_the_same_model_is_refused(models: tuple[Path, Path], filled: Path) -> None:
    with Gallery.open(filled, write=True) as gallery, pytest.raises(InputError, match="already"):
        gallery.reembed(models[0])


def lose_some(filled: Path, photos: Path) -> dict[str, str]:
    """Make three items unreachable, each in another way; returns words of the reasons by path."""
    (photos / "cat" / "0.png").unlink()
    picture(photos / "dog" / "1.png", 5000)
    with Gallery.open(filled, write=True) as gallery:
        vector = gallery.vectors([1])[0]
        gallery.store.add([NewItem("upload:ab", b"u" * 32, vector, thumbnail=gallery.store.thumbnail(1) or b"")])
    return {str(photos / "cat" / "0.png"): "gone", str(photos / "dog" / "1.png"): "changed", "upload:ab": "uploaded"}


def test_items_out_of_reach_stop_the_switch(models: tuple[Path, Path], filled: Path, photos: Path) -> None:
    expected = lose_some(filled, photos)
    with Gallery.open(filled, write=True) as gallery:
        with pytest.raises(OutOfReachError, match="3 items") as caught:
            gallery.reembed(models[1])
        assert {file.path for file in caught.value.files} == expected.keys()
        assert all(expected[file.path] in file.reason for file in caught.value.files)
        assert gallery.about.fingerprint == lookalike.load(models[0]).fingerprint
        assert len(gallery.search(1, k=20)) == 12  # the old vectors serve
        report = gallery.reembed(models[1], lost="thumbnail")
        assert (report.items, report.kept, report.embedded, report.thumbnails) == (13, 10, 3, 3)
        assert gallery.about.fingerprint == lookalike.load(models[1]).fingerprint


def test_items_out_of_reach_can_be_removed(models: tuple[Path, Path], filled: Path, photos: Path) -> None:
    expected = lose_some(filled, photos)
    with Gallery.open(filled, write=True) as gallery:
        report = gallery.reembed(models[1], lost="remove")
        assert report.items == len(gallery) == 10
        assert {file.path for file in report.removed} == expected.keys()
        assert {file.path: file.reason for file in gallery.store.rejected()} == {
            file.path: file.reason for file in report.removed
        }
        assert gallery.add(photos).added == 1  # the changed file is tried again
        with pytest.raises(InputError, match="lost"):
            gallery.reembed(models[0], lost="forget")  # type: ignore[arg-type]


def test_items_are_not_removed_for_a_fault_that_may_pass(
    models: tuple[Path, Path], filled: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "cat" / "0.png").unlink()
    broken = photos / "dog" / "0.png"

    def load(path: str) -> bytes:
        if path == str(broken):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return load_item(path)

    with Gallery.open(filled, write=True) as gallery:
        with monkeypatch.context() as patch:
            patch.setattr("lookalike.gallery.reembed.load_item", load)
            with pytest.raises(OutOfReachError) as caught:
                gallery.reembed(models[1], lost="remove")
        assert [file.path for file in caught.value.files] == [str(broken)]
        assert (len(gallery), gallery.store.rejected()) == (12, [])
        assert gallery.reembed(models[1], lost="remove").items == 11


@pytest.mark.parametrize("unmounted", ["cat", "."])
def test_items_of_a_folder_that_is_gone_are_not_removed(
    models: tuple[Path, Path], filled: Path, photos: Path, unmounted: str
) -> None:
    with Gallery.open(filled, write=True) as gallery:
        count = len([item for item in gallery.store.rows() if unmounted == "." or "/cat/" in item.path])
        (photos / unmounted).rename(photos.parent / "away")
        with pytest.raises(OutOfReachError, match=r"mounted") as caught:
            gallery.reembed(models[1], lost="remove")
        assert len(caught.value.files) == count
        assert len(gallery) == 12
        (photos.parent / "away").rename(photos / unmounted)
        assert gallery.reembed(models[1], lost="remove").items == 12


def test_vectors_of_thumbnails_are_not_kept_by_a_call_that_did_not_ask_for_them(
    models: tuple[Path, Path], filled: Path, photos: Path
) -> None:
    (photos / "cat" / "0.png").unlink()

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with Gallery.open(filled, write=True) as gallery:
        with pytest.raises(KeyboardInterrupt):
            gallery.reembed(models[1], lost="thumbnail", progress=stop)
        with pytest.raises(OutOfReachError, match="1 item"):
            gallery.reembed(models[1])
        report = gallery.reembed(models[1], lost="thumbnail")
        assert (report.kept, report.embedded, report.thumbnails) == (11, 1, 1)


PROGRAM = """
import sys, time
from lookalike.gallery.gallery import Gallery
from lookalike.gallery import reembed
reembed.EMBED_BATCH = 1
def told(done, total):
    print(done, flush=True)
    time.sleep(0.02)
with Gallery.open(sys.argv[1], write=True) as gallery:
    report = gallery.reembed(sys.argv[2], progress=told)
    print("report", report.kept, report.embedded, flush=True)
"""


def test_killed_in_the_middle_it_goes_on(models: tuple[Path, Path], filled: Path, photos: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(filled), str(models[1])]
    for stop_at in (3, 6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            while int(program.stdout.readline()) < stop_at:
                pass
            os.kill(program.pid, signal.SIGKILL)
        with Gallery.open(filled) as gallery:  # the old vectors serve
            assert gallery.about.fingerprint == lookalike.load(models[0]).fingerprint
            assert gallery.search(photos / "cat" / "0.png", k=1)[0].path != str(photos / "cat" / "0.png")
            assert gallery.check().problems == []
    with Gallery.open(filled, write=True) as gallery:
        gallery.add(picture(photos / "cat" / "late.png", 77))
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    kept, embedded = map(int, said[1:])
    assert kept >= 6
    assert kept + embedded == 13
    with Gallery.open(filled) as gallery:
        items = list(gallery.store.rows())
        vectors = lookalike.load(models[1]).embed([item.path for item in items])
        np.testing.assert_allclose(gallery.vectors([item.id for item in items]), vectors, atol=5e-3)
        assert gallery.check().problems == []
