"""Tiny ImageNet: folder and zip, the official layout and its common variations, and every wrong turn a person takes."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lookalike.data.catalog import UNLABELLED
from lookalike.data.tiny_imagenet import is_tiny_imagenet, read_tiny_imagenet
from lookalike.errors import InputError
from lookalike.image import decode
from small_sets import WNIDS, jpeg, tiny_imagenet, zip_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The small Tiny ImageNet, its classes listed in an order that is not sorted, as in the real one."""
    home = tiny_imagenet(tmp_path / "sets" / "tiny-imagenet-200")
    (home / "wnids.txt").write_text("\n".join([*WNIDS[1:], WNIDS[0]]) + "\n")
    with (home / "words.txt").open("a") as words:
        words.write("n00001740\tentity\n")  # a word that no class has
    return home


def zipped(home: Path, top: str = "tiny-imagenet-200/") -> Path:
    return zip_of(home, home.parent / "tiny-imagenet-200.zip", top)


def sort_val(home: Path, below: str = "") -> None:
    """What the scripts that people find on the web do to `val/`."""
    for line in (home / "val" / "val_annotations.txt").read_text().splitlines():
        file, wnid = line.split()[:2]
        folder = home / "val" / wnid / below
        folder.mkdir(parents=True, exist_ok=True)
        (home / "val" / "images" / file).rename(folder / file)
    (home / "val" / "images").rmdir()


def test_the_official_folder(home: Path) -> None:
    catalog = read_tiny_imagenet(home)
    assert catalog.class_ids == ("n01443537", "n02124075", "n04067472")
    assert catalog.class_names == ("goldfish", "Egyptian cat", "reel")
    assert catalog.name == "tiny-imagenet"
    assert catalog.container == "folder"
    assert {split: len(catalog.rows_of(split)) for split in ("train", "val", "test")} == {
        "train": 9,
        "val": 6,
        "test": 4,
    }
    for row in catalog.rows_of("train"):
        assert catalog.class_ids[catalog.labels[row]] in catalog.paths[row]
    assert [catalog.class_ids[label] for label in catalog.labels[catalog.rows_of("val")]] == [*WNIDS, *WNIDS]
    assert set(catalog.labels[catalog.rows_of("test")]) == {UNLABELLED}
    assert catalog.ids[0] == "train/n01443537/images/n01443537_0.JPEG"
    assert set(catalog.boxes) == {None}, "whole images are classified"


def test_a_set_that_is_not_whole_says_so(home: Path) -> None:
    remark = read_tiny_imagenet(home).remark
    assert "3 of 200 classes, 9 of 100,000 training and 6 of 10,000 validation images" in remark


@pytest.mark.parametrize("top", ["tiny-imagenet-200/", "", "a/b/"])
def test_the_zip_gives_the_same_catalog(home: Path, top: str) -> None:
    from_folder, from_zip = read_tiny_imagenet(home), read_tiny_imagenet(zipped(home, top))
    assert from_zip.container == "zip"
    assert from_zip.ids == from_folder.ids
    assert from_zip.labels.tolist() == from_folder.labels.tolist()
    assert from_zip.class_names == from_folder.class_names
    assert [from_zip.read_bytes(row) for row in range(19)] == [from_folder.read_bytes(row) for row in range(19)]


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("keep_list", [True, False])
def test_a_val_sorted_into_class_folders_gives_the_same_catalog(home: Path, below: str, keep_list: bool) -> None:
    official = read_tiny_imagenet(home)
    first = official.read_bytes(9)
    sort_val(home, below)
    if not keep_list:
        (home / "val" / "val_annotations.txt").unlink()
    resorted = read_tiny_imagenet(home)
    assert resorted.ids == official.ids
    assert resorted.labels.tolist() == official.labels.tolist()
    assert resorted.paths[9].startswith("val/n")
    assert resorted.read_bytes(9) == first


def test_a_val_that_was_copied_into_class_folders_is_read_once(home: Path) -> None:
    keep = home.parent / "images"
    shutil.copytree(home / "val" / "images", keep)
    sort_val(home)
    keep.rename(home / "val" / "images")
    catalog = read_tiny_imagenet(home)
    assert len(catalog.rows_of("val")) == 6
    assert catalog.paths[9] == "val/images/val_0.JPEG"


def test_train_without_images_folders_loads(home: Path) -> None:
    official = read_tiny_imagenet(home)
    for folder in (home / "train").iterdir():
        for file in (folder / "images").iterdir():
            file.rename(folder / file.name)
        (folder / "images").rmdir()
    flat = read_tiny_imagenet(home)
    assert flat.ids == official.ids
    assert flat.paths[0] == "train/n01443537/n01443537_0.JPEG"


def test_without_lists_the_folders_are_the_classes(home: Path) -> None:
    (home / "wnids.txt").unlink()
    (home / "words.txt").unlink()
    catalog = read_tiny_imagenet(home)
    assert catalog.class_names == catalog.class_ids == tuple(sorted(WNIDS))


def test_classes_with_the_same_first_word_keep_all_their_words(home: Path) -> None:
    (home / "words.txt").write_text("n01443537\tcrane\nn02124075\tcrane, bird\nn04067472\treel, spool\n")
    assert read_tiny_imagenet(home).class_names == ("crane", "crane, bird", "reel")


def test_what_a_mac_adds_is_left_out(home: Path) -> None:
    official = read_tiny_imagenet(home)
    (home / "train" / WNIDS[0] / "images" / "._n02124075_0.JPEG").write_bytes(b"junk")
    (home / ".DS_Store").write_bytes(b"junk")
    assert read_tiny_imagenet(home).ids == official.ids
    path = zipped(home)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/tiny-imagenet-200/train/n02124075/images/x.JPEG", b"junk")
    assert read_tiny_imagenet(path).ids == official.ids


def test_missing_test_images_are_no_fault(home: Path) -> None:
    shutil.rmtree(home / "test")
    assert len(read_tiny_imagenet(home)) == 15


@pytest.mark.parametrize("inside", ["..", "train", "train/n02124075", "train/n02124075/images", "val", "val/images"])
def test_a_neighbouring_folder_is_recognised_and_the_right_one_named(home: Path, inside: str) -> None:
    wrong = (home / inside).resolve()
    with pytest.raises(InputError, match="not the Tiny ImageNet folder") as caught:
        read_tiny_imagenet(wrong)
    assert caught.value.remedy == f"Use {home}"
    assert is_tiny_imagenet(wrong)


def test_a_folder_with_the_zip_in_it_is_recognised(home: Path) -> None:
    path = zipped(home)
    shutil.rmtree(home)
    with pytest.raises(InputError) as caught:
        read_tiny_imagenet(path.parent)
    assert caught.value.remedy == f"Use {path}"


def test_an_empty_folder_and_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="this folder is empty"):
        read_tiny_imagenet(tmp_path / "empty")
    with pytest.raises(InputError, match="No such file"):
        read_tiny_imagenet(tmp_path / "nothing")


@pytest.mark.parametrize("part", [0.02, 0.5, 0.98])
def test_a_zip_that_ends_early_is_refused(home: Path, part: float) -> None:
    path = zipped(home)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match="this zip ends early or is damaged"):
        read_tiny_imagenet(path)


def test_a_file_that_is_no_zip_and_a_zip_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny-imagenet-200.zip"
    path.write_text("<html>not found</html>")
    with pytest.raises(InputError, match="neither a folder nor a zip"):
        read_tiny_imagenet(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cats/1.jpg", b"")
    with pytest.raises(InputError, match="no train/ with classes"):
        read_tiny_imagenet(path)


def spoil(home: Path, how: str) -> None:
    annotations = home / "val" / "val_annotations.txt"
    if how == "class without images":
        shutil.rmtree(home / "train" / WNIDS[0])
    elif how == "class folder that is empty":
        (home / "wnids.txt").unlink()
        shutil.rmtree(home / "train" / WNIDS[0] / "images")
        (home / "train" / WNIDS[0] / f"{WNIDS[0]}_boxes.txt").unlink()
    elif how == "folder that is not listed":
        (home / "wnids.txt").write_text("\n".join(WNIDS[:2]))
    elif how == "label that no class has":
        annotations.write_text(annotations.read_text().replace(WNIDS[1], "n99999999"))
    elif how == "malformed annotation":
        annotations.write_text("val_0.JPEG 12 13\n")
    elif how == "missing annotation":
        annotations.write_text("".join(annotations.read_text().splitlines(keepends=True)[1:]))
    elif how == "no annotations":
        annotations.unlink()
    elif how == "contradiction":
        sort_val(home)
        (home / "val" / WNIDS[0] / "val_0.JPEG").rename(home / "val" / WNIDS[1] / "val_0.JPEG")
    elif how == "no val":
        shutil.rmtree(home / "val")
    elif how == "image in no class":
        (home / "train" / "stray.JPEG").write_bytes(jpeg(0))
    elif how == "one class":
        (home / "wnids.txt").unlink()
        for wnid in WNIDS[1:]:
            shutil.rmtree(home / "train" / wnid)
    elif how == "list that is no text":
        (home / "wnids.txt").write_bytes(b"\xff\xfe\x00\x80")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("class without images", "class n01443537 has no training images"),
        ("class folder that is empty", "class n01443537 has no training images"),
        ("folder that is not listed", "train/n04067472 is not in wnids.txt"),
        ("label that no class has", r"val_1.JPEG has the label n99999999, which is not in wnids.txt"),
        ("malformed annotation", "val_annotations.txt, line 1 is not"),
        ("missing annotation", r"val_0.JPEG has no label: it has no line in val_annotations.txt"),
        ("no annotations", "has no label: val/val_annotations.txt is missing"),
        ("contradiction", "is of class n01443537 in val_annotations.txt"),
        ("no val", "no images in val/"),
        ("image in no class", "train/stray.JPEG lies in no class folder"),
        ("one class", "1 classes in train/"),
        ("list that is no text", "cannot read 'wnids.txt'"),
    ],
)
def test_what_is_wrong_is_named(home: Path, how: str, message: str) -> None:
    spoil(home, how)
    with pytest.raises(InputError, match=message) as caught:
        read_tiny_imagenet(home)
    assert str(home) in caught.value.message
    assert caught.value.remedy


def test_other_sets_with_wordnet_ids_are_not_mistaken_for_it(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "n01440764").mkdir(parents=True)
        (tmp_path / split / "n01440764" / "1.JPEG").write_bytes(jpeg(1))
    assert not is_tiny_imagenet(tmp_path)


def test_it_is_recognised_in_folder_and_zip(home: Path) -> None:
    assert is_tiny_imagenet(home)
    assert is_tiny_imagenet(zipped(home))


@pytest.mark.real_data
def test_real_images(real_data: Path) -> None:
    catalog = read_tiny_imagenet(real_data / "tiny-imagenet-200")
    assert len(catalog.class_ids) >= 20
    assert all(len(catalog.rows_of(split)) for split in ("train", "val"))
    assert (len(catalog.class_ids) == 200) == (catalog.remark == "")
    for split in ("train", "val"):
        labels = catalog.labels[catalog.rows_of(split)]
        assert len(set(np.bincount(labels).tolist())) == 1, "as many images of each class"
    some = np.linspace(0, len(catalog) - 1, 50).astype(int)
    assert {decode(catalog.read_bytes(row)).shape for row in some} == {(64, 64, 3)}


def test_two_classes_with_the_same_words_are_told_apart_by_their_ids(home: Path) -> None:
    first, second, third = WNIDS
    (home / "words.txt").write_text(f"{first}\tcrane\n{second}\tcrane\n{third}\treel\n")
    catalog = read_tiny_imagenet(home)
    assert dict(zip(catalog.class_ids, catalog.class_names, strict=True)) == {
        first: f"crane ({first})",
        second: f"crane ({second})",
        third: "reel",
    }
