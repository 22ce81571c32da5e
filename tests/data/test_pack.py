"""The pack: decoded once, noticed when its source changes, whole or absent, and never larger than the disk."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_factory import drawn, encoded
from lookalike.data import pack as packs
from lookalike.data.catalog import UNLABELLED, Catalog, Row
from lookalike.data.image_folder import read_folder
from lookalike.data.pack import Pack, pack
from lookalike.data.synthetic import render
from lookalike.data.tiny_imagenet import read_tiny_imagenet
from lookalike.errors import InputError
from lookalike.image import decode

CLASSES = {"cat": "beetle-plain", "dog": "pot-handled", "owl": "robot-flying"}  # what is drawn for them


def png(name: str, seed: int, size: int = 24) -> bytes:
    return encoded(drawn(seed, size, name))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Class folders with four pictures each, of different sizes."""
    home = tmp_path / "pictures"
    for name, class_name in CLASSES.items():
        (home / name).mkdir(parents=True)
        for number in range(4):
            (home / name / f"{number}.png").write_bytes(png(class_name, number, 20 + 4 * number))
    return home


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "packs"


def zipped(home: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    path = home.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(home.rglob("*.png")):
            archive.write(file, file.relative_to(home).as_posix())
    return path


def made_again(home: Path, cache: Path, before: Pack) -> bool:
    return pack(read_folder(home), 16, cache=cache).folder != before.folder


def test_row_i_is_image_i_decoded(home: Path, cache: Path) -> None:
    catalog = read_folder(home)
    made = pack(catalog, 16, cache=cache)
    assert made.images.shape == (12, 16, 16, 3)
    assert made.images.dtype == np.uint8
    assert isinstance(made.images, np.memmap)
    assert not made.images.flags.writeable
    assert made.size == 16
    assert made.skipped == ()
    assert made.catalog is catalog
    assert made.labels.dtype == np.int64
    assert made.labels.tolist() == catalog.labels.tolist()
    for row, path in enumerate(catalog.paths):
        assert np.array_equal(made.images[row], decode((home / path).read_bytes(), 16))
    made.verify()


def test_the_folder_is_as_documented(home: Path, cache: Path) -> None:
    catalog = read_folder(home)
    made = pack(catalog, 16, cache=cache)
    assert made.folder.parent == cache
    assert made.folder.name.startswith("pictures-16px-")
    assert sorted(path.name for path in made.folder.iterdir()) == ["images.npy", "pack.json"]
    header = json.loads((made.folder / "pack.json").read_text())
    assert header["fingerprint"] == catalog.fingerprint
    assert (header["images"], header["size"], header["name"]) == (12, 16, "pictures")
    assert header["source"] == str(home)
    assert made.folder.stat().st_mode & 0o777 == 0o755, "others may read it"


def test_it_is_decoded_once(home: Path, cache: Path) -> None:
    reports: list[tuple[int, int]] = []
    first = pack(read_folder(home), 16, cache=cache, progress=lambda *done: reports.append(done))
    written = (first.folder / "images.npy").stat().st_mtime_ns
    assert reports == [(12, 12)]
    second = pack(read_folder(home), 16, cache=cache, progress=lambda *done: reports.append(done))
    assert reports == [(12, 12)], "a pack that is there reports nothing"
    assert second.folder == first.folder
    assert (second.folder / "images.npy").stat().st_mtime_ns == written
    assert np.array_equal(first.images, second.images)


def test_progress_counts_up_to_all(home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "CHUNK", 5)
    reports: list[tuple[int, int]] = []
    made = pack(read_folder(home), 16, cache=cache, workers=3, progress=lambda *done: reports.append(done))
    assert reports == [(5, 12), (10, 12), (12, 12)]
    whole = pack(read_folder(home), 16, cache=cache / "other", workers=1)
    assert np.array_equal(made.images, whole.images), "whatever the threads and chunks"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_the_same_pack_as_the_folder(
    home: Path, cache: Path, compression: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "CHUNK", 2)  # several threads read one zip
    from_folder = pack(read_folder(home), 16, cache=cache)
    from_zip = pack(read_folder(zipped(home, compression)), 16, cache=cache, workers=4)
    assert from_zip.catalog.container == "zip"
    assert np.array_equal(from_zip.images, from_folder.images)
    assert from_zip.labels.tolist() == from_folder.labels.tolist()


def test_sizes_and_selections_have_packs_of_their_own(home: Path, cache: Path) -> None:
    catalog = read_folder(home)
    some = catalog.select([7, 2, 3])
    made = [pack(catalog, 16, cache=cache), pack(catalog, 8, cache=cache), pack(some, 16, cache=cache)]
    assert len({one.folder for one in made}) == 3
    assert made[1].images.shape == (12, 8, 8, 3)
    assert np.array_equal(made[2].images, made[0].images[[7, 2, 3]])


def test_squashed_images_have_a_pack_of_their_own(home: Path, cache: Path) -> None:
    Image.fromarray(render("pot-handled", np.random.default_rng(0), 24)).crop((0, 0, 24, 12)).save(home / "dog/0.png")
    catalog = read_folder(home)
    squashed, cut = pack(catalog, 8, cache=cache, crop_mode="squash"), pack(catalog, 8, cache=cache)
    assert squashed.folder != cut.folder
    row = catalog.paths.index("dog/0.png")
    assert np.array_equal(squashed.images[row], decode(catalog.read_bytes(row), 8, crop_mode="squash"))
    assert not np.array_equal(squashed.images[row], cut.images[row])


def test_a_box_is_what_is_packed_when_boxes_are_cropped(home: Path, cache: Path) -> None:
    data = (home / "cat" / "3.png").read_bytes()
    rows = [
        Row("cat/3.png", 0, "train", (4, 6, 20, 28), "left"),
        Row("cat/3.png", 1, "train", (0, 0, 99, 99), "all"),
        Row("cat/3.png", UNLABELLED, "test", None, "whole"),
    ]
    catalog = Catalog.from_rows(rows, root=home, class_names=("a", "b"), name="boxes")
    made = pack(catalog, 12, cache=cache, crop_boxes=True)
    cut = Image.open(io.BytesIO(data)).crop((4, 6, 20, 28))
    file = io.BytesIO()
    cut.save(file, "PNG")
    assert np.array_equal(made.images[0], decode(file.getvalue(), 12))
    assert np.array_equal(made.images[1], made.images[2])
    assert made.labels.tolist() == [0, 1, -1]
    moved = catalog.table.set_column(4, "box", [[[5, 6, 20, 28], [0, 0, 99, 99], None]])
    again = pack(replace(catalog, table=moved.cast(catalog.table.schema)), 12, cache=cache, crop_boxes=True)
    assert again.folder != made.folder, "another box is another picture"
    whole = pack(catalog, 12, cache=cache)
    assert whole.folder != made.folder
    assert np.array_equal(whole.images[0], whole.images[2])
    assert [json.loads((one.folder / "pack.json").read_text())["crop_boxes"] for one in (made, whole)] == [True, False]


def test_without_boxes_cropping_them_changes_nothing(home: Path, cache: Path) -> None:
    catalog = read_folder(home)
    assert pack(catalog, 12, cache=cache, crop_boxes=True).folder == pack(catalog, 12, cache=cache).folder


# a source that changes


def test_a_picture_that_is_rewritten_is_packed_again(home: Path, cache: Path) -> None:
    before = pack(read_folder(home), 16, cache=cache)
    path = home / "cat" / "0.png"
    path.write_bytes(png("flower-five", 9, 20))
    assert made_again(home, cache, before)
    assert not np.array_equal(pack(read_folder(home), 16, cache=cache).images[0], before.images[0])


def test_as_many_bytes_at_another_time_are_noticed(home: Path, cache: Path) -> None:
    path = home / "cat" / "0.png"
    before = pack(read_folder(home), 16, cache=cache)
    stat = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert made_again(home, cache, before)


def test_pictures_that_come_go_or_change_their_class_are_noticed(home: Path, cache: Path) -> None:
    before = pack(read_folder(home), 16, cache=cache)
    shutil.copy2(home / "cat" / "0.png", home / "cat" / "9.png")
    assert made_again(home, cache, before)
    (home / "cat" / "9.png").rename(home / "dog" / "9.png")
    relabelled = pack(read_folder(home), 16, cache=cache)
    assert relabelled.labels.tolist().count(1) == 5
    (home / "dog" / "9.png").unlink()
    assert not made_again(home, cache, before), "as it was before"
    (home / "owl" / "3.png").unlink()
    assert made_again(home, cache, before)


def test_a_label_alone_is_noticed(home: Path, cache: Path) -> None:
    rows = [Row("cat/0.png", 0, "train"), Row("cat/1.png", 1, "train")]
    folders = set()
    for swap in (False, True):
        turned = [replace(row, label=1 - row.label) for row in rows] if swap else rows
        catalog = Catalog.from_rows(turned, root=home, class_names=("a", "b"), name="two")
        made = pack(catalog, 16, cache=cache)
        assert made.labels.tolist() == ([1, 0] if swap else [0, 1])
        folders.add(made.folder)
    assert len(folders) == 2


def test_a_changed_zip_is_noticed(home: Path, cache: Path) -> None:
    before = pack(read_folder(zipped(home)), 16, cache=cache)
    assert not made_again(zipped(home), cache, before), "the same bytes, zipped again"
    (home / "cat" / "0.png").write_bytes(png("flower-five", 9, 20))
    assert made_again(zipped(home), cache, before)


# never half


def cut_short(folder: Path) -> None:
    with (folder / "images.npy").open("r+b") as file:
        file.truncate(3000)


def wrong_format(folder: Path) -> None:
    header = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps({**header, "format": 0}))


SPOILS = {
    "images cut short": cut_short,
    "images empty": lambda folder: (folder / "images.npy").write_bytes(b""),
    "images missing": lambda folder: (folder / "images.npy").unlink(),
    "no array": lambda folder: (folder / "images.npy").write_bytes(b"x" * 9344),
    "header missing": lambda folder: (folder / "pack.json").unlink(),
    "header cut short": lambda folder: (folder / "pack.json").write_text('{"format": 1, "rows"'),
    "header of something else": lambda folder: (folder / "pack.json").write_text("[]"),
    "header without format": lambda folder: (folder / "pack.json").write_text("{}"),
    "an older format": wrong_format,
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("how", SPOILS)
def test_half_a_pack_is_made_again(home: Path, cache: Path, how: str) -> None:
    first = pack(read_folder(home), 16, cache=cache)
    expected = np.array(first.images)
    SPOILS[how](first.folder)
    second = pack(read_folder(home), 16, cache=cache)
    assert second.folder == first.folder
    assert np.array_equal(second.images, expected)
    second.verify()
    assert [path.name for path in cache.iterdir()] == [first.folder.name]


def test_an_interruption_leaves_nothing(home: Path, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(read_folder(home), 16, cache=cache, progress=interrupt)
    assert list(cache.iterdir()) == []


KILLED = """
import sys
from pathlib import Path
from lookalike.data import pack as packs
from lookalike.data.image_folder import read_folder
packs.CHUNK = 4
def wait(done, total):
    print(done, flush=True)
    sys.stdin.read()
packs.pack(read_folder(sys.argv[1]), 16, cache=Path(sys.argv[2]), workers=1, progress=wait)
"""


def test_what_a_killed_process_leaves_is_no_pack_and_is_removed(home: Path, cache: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(home), str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"4\n"
        process.send_signal(signal.SIGKILL)
    left = list(cache.iterdir())
    assert [path.suffix for path in left] == [".partial"]
    pack(read_folder(home), 8, cache=cache).verify()
    assert not left[0].exists()
    pack(read_folder(home), 16, cache=cache).verify()


def test_two_that_pack_at_once_share_the_pack(home: Path, cache: Path) -> None:
    """While the first decodes, another makes the whole pack."""
    faster: list[Pack] = []
    first = pack(
        read_folder(home), 16, cache=cache, progress=lambda *_: faster.append(pack(read_folder(home), 16, cache=cache))
    )
    assert first.folder == faster[0].folder
    assert [path.name for path in cache.iterdir()] == [first.folder.name]
    assert np.array_equal(first.images, faster[0].images)
    faster[0].verify()


def test_a_flipped_bit_is_found(home: Path, cache: Path) -> None:
    made = pack(read_folder(home), 16, cache=cache)
    path = made.folder / "images.npy"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    again = pack(read_folder(home), 16, cache=cache)
    with pytest.raises(InputError, match="this pack is damaged") as caught:
        again.verify()
    assert str(made.folder) in caught.value.message
    shutil.rmtree(made.folder)  # the remedy
    pack(read_folder(home), 16, cache=cache).verify()


# images that cannot be decoded


def spoil(home: Path, *names: str) -> None:
    for name in names:
        (home / name).write_bytes((home / name).read_bytes()[:60])


@pytest.mark.parametrize("as_zip", [False, True])
def test_undecodable_images_are_refused_with_their_paths(home: Path, cache: Path, as_zip: bool) -> None:
    spoil(home, "cat/1.png", "owl/0.png")
    source = zipped(home) if as_zip else home
    with pytest.raises(InputError, match="2 of 12 images cannot be decoded") as caught:
        pack(read_folder(source), 16, cache=cache)
    message, remedy = caught.value.message, caught.value.remedy
    assert message.startswith(f"{source}: ")
    assert message.index("cat/1.png: ") < message.index("owl/0.png: ")
    assert "more" not in message
    assert "\n" not in message
    assert "data.skip_undecodable=true" in remedy
    assert list(cache.iterdir()) == []


def test_of_many_undecodable_images_some_are_named(home: Path, cache: Path) -> None:
    spoil(home, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)))
    with pytest.raises(InputError, match=r"8 of 12 .*; and 3 more") as caught:
        pack(read_folder(home), 16, cache=cache)
    assert caught.value.message.count(".png: ") == 5


def test_an_image_that_vanishes_is_named(home: Path, cache: Path) -> None:
    catalog = read_folder(home)
    (home / "dog" / "2.png").unlink()
    with pytest.raises(InputError, match=r"cannot read 'dog/2\.png'"):
        pack(catalog, 16, cache=cache)


def test_undecodable_images_are_skipped_and_counted_when_asked(home: Path, cache: Path) -> None:
    whole = pack(read_folder(home), 16, cache=cache / "whole")
    times = {name: (home / name).stat().st_mtime_ns for name in ("cat/1.png", "owl/3.png")}
    spoil(home, *times)
    for _ in range(2):  # made, then found
        made = pack(read_folder(home), 16, cache=cache, skip_undecodable=True)
        kept = [row for row, path in enumerate(whole.catalog.paths) if path not in times]
        assert made.skipped == ("cat/1.png", "owl/3.png")
        assert made.catalog.paths == [whole.catalog.paths[row] for row in kept]
        assert np.array_equal(made.images, whole.images[kept])
        assert made.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 3
        made.verify()
    assert sorted(path.name for path in made.folder.iterdir()) == ["images.npy", "pack.json"]
    with pytest.raises(InputError, match="2 of 12"):  # the pack without them is not taken for a whole one
        pack(read_folder(home), 16, cache=cache)


def test_skipping_where_nothing_is_wrong_skips_nothing(home: Path, cache: Path) -> None:
    made = pack(read_folder(home), 16, cache=cache, skip_undecodable=True)
    assert made.skipped == ()
    assert len(made.images) == len(made.catalog) == 12


def test_not_one_image_and_no_image(home: Path, cache: Path) -> None:
    catalog = read_folder(home)
    with pytest.raises(InputError, match="there are no images to pack"):
        pack(catalog.select([]), 16, cache=cache)
    spoil(home, *catalog.paths)
    with pytest.raises(InputError, match="not one image can be decoded"):
        pack(catalog, 16, cache=cache, skip_undecodable=True)
    assert list(cache.iterdir()) == []


# the disk


def test_too_little_space_is_said_before_anything_is_decoded(
    home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "RESERVED_BYTES", shutil.disk_usage(home).total)
    reports: list[tuple[int, int]] = []
    with pytest.raises(InputError, match=r"0\.0 GB are needed for the pack and [\d.]+ GB are free") as caught:
        pack(read_folder(home), 16, cache=cache, progress=lambda *done: reports.append(done))
    assert str(cache) in caught.value.message
    assert "LOOKALIKE_CACHE" in caught.value.remedy
    assert reports == []
    assert list(cache.iterdir()) == []


@contextmanager
def files_up_to(length: int) -> Iterator[None]:
    """As on a disk that is nearly full: the system refuses to make a file longer than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_space_that_runs_out_is_an_error_and_leaves_nothing(home: Path, cache: Path) -> None:
    catalog = read_folder(home)
    with files_up_to(5000), pytest.raises(InputError, match="cannot be written") as caught:
        pack(catalog, 16, cache=cache)
    assert "Make room" in caught.value.remedy
    assert list(cache.iterdir()) == []
    pack(catalog, 16, cache=cache).verify()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system takes room as it is written")
def test_the_room_is_taken_before_it_is_written(home: Path, cache: Path) -> None:
    """A mapped file without its blocks on the disk would end the process when the disk is full."""
    taken: list[int] = []

    def look(done: int, total: int) -> None:
        (path,) = cache.glob(".*/images.npy")
        stat = path.stat()
        assert stat.st_size > 12 * 256 * 256 * 3
        taken.append(stat.st_blocks * 512 - stat.st_size)

    catalog = read_folder(home)
    spoil(home, *catalog.paths)  # so that nothing is written
    with pytest.raises(InputError, match="12 of 12"):
        pack(catalog, 256, cache=cache, progress=look)
    assert taken[0] >= 0


@pytest.mark.parametrize("where", ["cache/packs", "cache/packs/deeper"])
def test_a_cache_that_cannot_be_a_folder_is_named(home: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cannot be written") as caught:
        pack(read_folder(home), 16, cache=tmp_path / where)
    assert str(tmp_path / where) in caught.value.message
    assert "LOOKALIKE_CACHE" in caught.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_the_right_to_write_is_named(home: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        pack(read_folder(home), 16, cache=cache)


def test_the_cache_is_where_the_environment_says(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "elsewhere"))
    assert pack(read_folder(home), 16).folder.parent == tmp_path / "elsewhere" / "packs"
    monkeypatch.delenv("LOOKALIKE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    monkeypatch.setenv("HOME", str(tmp_path / "users"))
    assert tmp_path / "users" in pack(read_folder(home), 16).folder.parents


@pytest.mark.real_data
def test_real_images(real_data: Path, cache: Path) -> None:
    catalog = read_tiny_imagenet(real_data / "tiny-imagenet-200")
    rows = np.linspace(0, len(catalog) - 1, 200).astype(int)
    made = pack(catalog.select(rows), 64, cache=cache)
    for row in range(0, 200, 20):
        expected = Image.open(catalog.root / made.catalog.paths[row]).convert("RGB")
        assert np.array_equal(made.images[row], np.asarray(expected)), "64 pixels already: taken as they are"
    made.verify()
