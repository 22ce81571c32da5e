"""Import: every kind of source becomes a named set that is read like the original, or nothing at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lookalike.data.image_folder import read_folder
from lookalike.data.import_dataset import import_dataset
from lookalike.data.tiny_imagenet import read_tiny_imagenet
from lookalike.errors import InputError
from small_sets import WNIDS, WORDS, class_folders, hugging_face, jpeg, tiny_imagenet, zip_of


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "home" / "sets"


def images_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["folder", "zip", "zip without the folder above"])
def test_tiny_imagenet_is_copied_in_its_official_layout(kind: str, tmp_path: Path, into: Path) -> None:
    home = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    tops = {"zip": "tiny-imagenet-200/", "zip without the folder above": ""}
    source = zip_of(home, tmp_path / "tiny.zip", tops[kind]) if kind in tops else home
    seen: list[tuple[int, int]] = []
    folder = import_dataset(source, "tiny-imagenet", into, progress=lambda done, total: seen.append((done, total)))
    assert folder == into / "tiny-imagenet"
    assert images_of(folder) == images_of(home)
    catalog = read_tiny_imagenet(folder)
    assert catalog.ids == read_tiny_imagenet(home).ids
    assert catalog.class_names == WORDS
    assert seen == [(len(images_of(home)),) * 2]
    assert [path.name for path in into.iterdir()] == ["tiny-imagenet"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_class_folders_are_copied_and_nothing_else_beside_them(kind: str, tmp_path: Path, into: Path) -> None:
    home = class_folders(tmp_path / "my pets")
    original = images_of(home)
    (home / "notes.txt").write_text("no picture")
    (home / "cat" / ".hidden.jpg").write_bytes(b"")
    source = zip_of(home, tmp_path / "pets.zip", "my pets/") if kind == "zip" else home
    folder = import_dataset(source, "pets", into)
    assert images_of(folder) == original
    assert read_folder(folder).class_names == ("cat", "dog", "owl")
    assert read_folder(folder).name == "pets"


def test_a_folder_with_splits_keeps_them(tmp_path: Path, into: Path) -> None:
    for split in ("train", "val"):
        class_folders(tmp_path / "pets" / split, images=2)
    catalog = read_folder(import_dataset(tmp_path / "pets", "pets", into))
    assert {split: len(catalog.rows_of(split)) for split in ("train", "val", "test")} == {
        "train": 6,
        "val": 6,
        "test": 0,
    }


def test_a_hugging_face_copy_of_tiny_imagenet_comes_out_in_the_official_layout(tmp_path: Path, into: Path) -> None:
    copy = hugging_face(tmp_path / "copy" / "data")
    folder = import_dataset(copy.parent, "tiny-imagenet", into)
    catalog = read_tiny_imagenet(folder)
    assert catalog.class_ids == WNIDS
    assert catalog.class_names == WNIDS, "the copy has no words"
    assert {split: len(catalog.rows_of(split)) for split in ("train", "val")} == {"train": 9, "val": 6}
    assert (folder / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_0.JPEG").read_bytes() == jpeg(100)
    first = catalog.rows_of("val")[0]
    assert catalog.read_bytes(first) == jpeg(50)


def test_words_beside_a_hugging_face_copy_are_taken_along(tmp_path: Path, into: Path) -> None:
    copy = hugging_face(tmp_path / "copy")
    (copy / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    assert read_tiny_imagenet(import_dataset(copy, "tiny-imagenet", into)).class_names[0] == "goldfish"


def test_another_hugging_face_copy_comes_out_as_class_folders(tmp_path: Path, into: Path) -> None:
    copy = hugging_face(tmp_path / "copy", names=("cat", "dog", "a/b"))
    catalog = read_folder(import_dataset(copy, "pets", into))
    assert catalog.class_names == ("a-b", "cat", "dog")
    assert {split: len(catalog.rows_of(split)) for split in ("train", "val")} == {"train": 9, "val": 6}


def test_one_parquet_file_will_do(tmp_path: Path, into: Path) -> None:
    copy = hugging_face(tmp_path / "copy", names=("cat", "dog", "owl"))
    catalog = read_folder(import_dataset(copy / "train-00000-of-00001.parquet", "pets", into))
    assert len(catalog) == 9


def test_the_folder_of_all_sets_is_for_everybody_to_read(tmp_path: Path, into: Path) -> None:
    folder = import_dataset(class_folders(tmp_path / "pets"), "pets", into)
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "builtin", "my pets", "-x", "ü"])
def test_a_name_that_is_no_plain_name_is_refused(name: str, tmp_path: Path, into: Path) -> None:
    with pytest.raises(InputError, match="cannot name a data set"):
        import_dataset(class_folders(tmp_path / "pets"), name, into)
    assert not into.exists()


def test_a_name_that_is_taken_is_refused_and_the_other_set_untouched(tmp_path: Path, into: Path) -> None:
    first = import_dataset(class_folders(tmp_path / "pets"), "pets", into)
    before = images_of(first)
    with pytest.raises(InputError, match="there is a data set of this name"):
        import_dataset(class_folders(tmp_path / "others", images=2), "pets", into)
    assert images_of(first) == before


def broken_zip(folder: Path) -> Path:
    path = zip_of(class_folders(folder / "pets"), folder / "pets.zip")
    path.write_bytes(path.read_bytes()[:-200])
    return path


def damaged_zip(folder: Path) -> Path:
    path = zip_of(class_folders(folder / "pets"), folder / "pets.zip")
    data = bytearray(path.read_bytes())
    at = data.index(jpeg(2003))
    data[at + 50] ^= 0xFF
    path.write_bytes(data)
    return path


def bomb(folder: Path) -> Path:
    path = zip_of(class_folders(folder / "pets"), folder / "pets.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("owl/bomb.jpg", bytes(80 << 20))
    return path


def link_inside(folder: Path) -> Path:
    path = zip_of(class_folders(folder / "pets"), folder / "pets.zip")
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("owl/link.jpg")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return path


def leading_out(folder: Path) -> Path:
    path = folder / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat/1.jpg", "dog/1.jpg", "C:/1.jpg"):
            archive.writestr(name, jpeg(1))
    return path


def not_an_image(folder: Path) -> Path:
    copy = hugging_face(folder / "copy", names=("cat", "dog", "owl"))
    shard = copy / "valid-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    return copy


def missing_shard(folder: Path) -> Path:
    copy = hugging_face(folder / "copy")
    (copy / "train-00000-of-00001.parquet").rename(copy / "train-00000-of-00002.parquet")
    return copy


def table(folder: Path) -> Path:
    (folder / "pets.csv").write_text("path,label\na.jpg,cat\n")
    return folder / "pets.csv"


BAD = {
    "nothing there": (lambda folder: folder / "nothing", "cannot be opened"),
    "empty folder": (lambda folder: folder, "no images in it"),
    "one class": (
        lambda folder: zip_of(class_folders(folder / "p") / "cat", folder / "1.zip", "cat/"),
        "one class only",
    ),
    "zip that ends early": (broken_zip, "ends early or is damaged"),
    "zip with a damaged image": (damaged_zip, "'owl/3.jpg' is damaged"),
    "zip bomb": (bomb, "MiB would come out of it"),
    "zip with a link": (link_inside, "'owl/link.jpg' is a link or a device"),
    "zip that leads out": (leading_out, "'C:/1.jpg' leads out of the zip"),
    "damaged Parquet": (not_an_image, "not a whole Parquet file"),
    "missing shard": (missing_shard, "1 of 2 'train' files are here"),
    "table": (table, "a table need not be imported"),
}


@pytest.mark.parametrize(("build", "reason"), BAD.values(), ids=BAD)
def test_a_bad_source_leaves_nothing(build, reason: str, tmp_path: Path, into: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match=reason) as caught:
        import_dataset(build(tmp_path / "source"), "pets", into)
    assert caught.value.remedy
    assert not into.exists() or list(into.iterdir()) == []


def test_another_set_is_not_taken_for_tiny_imagenet(tmp_path: Path, into: Path) -> None:
    with pytest.raises(InputError, match="this is not Tiny ImageNet"):
        import_dataset(class_folders(tmp_path / "pets"), "tiny-imagenet", into)
    assert list(into.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, into: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_dataset(class_folders(tmp_path / "pets"), "pets", into, progress=stop)
    assert list(into.iterdir()) == []


HALTED = """
import sys, time
from pathlib import Path
from lookalike.data.import_dataset import import_dataset
def halt(done, total):
    print("halfway", flush=True)
    time.sleep(60)
import_dataset(Path(sys.argv[1]), "pets", Path(sys.argv[2]), progress=halt)
"""


def test_a_killed_import_is_no_set_and_is_swept_away_by_the_next(tmp_path: Path, into: Path) -> None:
    source = class_folders(tmp_path / "pets", images=200)
    command = [sys.executable, "-c", HALTED, source, into]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        (left,) = into.iterdir()
        assert left.name.startswith(".pets-")
        import_dataset(source, "others", into)
        assert left.exists(), "the other import is under way"
        process.send_signal(signal.SIGKILL)
    folder = import_dataset(source, "pets", into)
    assert len(images_of(folder)) == 600
    assert sorted(path.name for path in into.iterdir()) == ["others", "pets"]


def test_an_import_that_is_told_to_end_leaves_nothing(tmp_path: Path, into: Path) -> None:
    source = class_folders(tmp_path / "pets", images=200)
    ending = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"  # as the command line does
    command = [sys.executable, "-c", HALTED.replace("def halt", ending + "def halt"), source, into]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    assert list(into.iterdir()) == []


@pytest.mark.real_data
def test_the_real_set_from_a_zip_is_the_real_set(real_data: Path, tmp_path: Path, into: Path) -> None:
    home = real_data / "tiny-imagenet-200"
    source = zip_of(home, tmp_path / "tiny-imagenet-200.zip", "tiny-imagenet-200/")
    imported, official = read_tiny_imagenet(import_dataset(source, "tiny-imagenet", into)), read_tiny_imagenet(home)
    assert imported.ids == official.ids
    assert imported.labels.tolist() == official.labels.tolist()
    assert imported.class_names == official.class_names
    assert all(imported.read_bytes(row) == official.read_bytes(row) for row in range(0, len(official), 97))


def test_a_file_where_the_folder_of_all_sets_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="taken/pets: "):
        import_dataset(class_folders(tmp_path / "pets"), "pets", tmp_path / "taken")


def test_a_list_that_unpacks_to_gigabytes_is_not_read_whole(tmp_path: Path) -> None:
    bomb = zip_of(tiny_imagenet(tmp_path / "tiny"), tmp_path / "bomb.zip")
    with zipfile.ZipFile(bomb) as archive:
        others = {name: archive.read(name) for name in archive.namelist() if name != "words.txt"}
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in others.items():
            archive.writestr(name, data)
        archive.writestr("words.txt", b"\n" * (65 * 2**20))
    with pytest.raises(InputError, match=r"words.txt.*more than 64 MiB"):
        import_dataset(bomb, "tiny", tmp_path / "sets")
    assert not any((tmp_path / "sets").iterdir())


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_file_that_is_larger_than_any_image_is_refused(
    kind: str, tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.data.import_dataset.MAX_BYTES", 100_000)
    source = class_folders(tmp_path / "pets")
    (source / "cat" / "large.jpg").write_bytes(jpeg(0) + bytes(100_000))
    if kind == "zip":
        source = zip_of(source, tmp_path / "pets.zip")
    with pytest.raises(InputError, match=r"large\.jpg: .* too many"):
        import_dataset(source, "pets", into)
    assert list(into.iterdir()) == []


def test_a_file_of_the_largest_size_is_imported(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folders(tmp_path / "pets")
    largest = max(file.stat().st_size for file in source.rglob("*.jpg"))
    monkeypatch.setattr("lookalike.data.import_dataset.MAX_BYTES", largest)
    assert images_of(import_dataset(source, "pets", into)) == images_of(source)
