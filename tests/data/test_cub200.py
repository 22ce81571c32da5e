"""CUB-200-2011: folder and zip, boxes and splits from the lists, and lists that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike.data import check, cub200
from lookalike.data.cub200 import is_cub200, read_cub200
from lookalike.data.import_dataset import import_dataset
from lookalike.data.registry import load_dataset
from lookalike.errors import InputError
from small_sets import jpeg, zip_of

FOLDERS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
LISTS = {
    "classes.txt": [f"{number} {folder}" for number, folder in enumerate(FOLDERS, start=1)],
    "images.txt": [f"{n} {FOLDERS[n % 2]}/bird_{n}.jpg" for n in range(1, 7)],
    "image_class_labels.txt": [f"{n} {n % 2 + 1}" for n in range(1, 7)],
    "train_test_split.txt": [f"{n} {int(n < 5)}" for n in range(1, 7)],
    "bounding_boxes.txt": [f"{n} 1.0 2.0 5.0 {n / 2}" for n in range(1, 7)],
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two classes with three images each, the last of each for testing."""
    home = tmp_path / "CUB_200_2011"
    for line in LISTS["images.txt"]:
        place = home / "images" / line.split()[1]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg(len(place.name)))
    for name, lines in LISTS.items():
        (home / name).write_text("\n".join(lines) + "\n")
    return home


def test_the_official_folder(home: Path) -> None:
    catalog = read_cub200(home)
    assert catalog.name == "cub200"
    assert catalog.class_ids == FOLDERS
    assert catalog.class_names == ("Black footed Albatross", "Laysan Albatross")
    assert catalog.ids == [f"images/{FOLDERS[n % 2]}/bird_{n}.jpg" for n in (2, 4, 1, 3, 6, 5)], "by split and path"
    assert catalog.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert catalog.splits.tolist() == ["train"] * 4 + ["test"] * 2
    assert catalog.boxes[:3] == [(1, 2, 6, 3), (1, 2, 6, 4), (1, 2, 6, 3)]
    assert catalog.remark == "part: 6 of the 11,788 images, 2 of the 200 classes"


def test_zip_parent_and_import_give_the_same(home: Path, tmp_path: Path) -> None:
    (home / "README").write_text("not needed")
    (home / "segmentations").mkdir()
    (home / "segmentations" / "bird_1.png").write_bytes(jpeg(1))
    zipped = zip_of(home, tmp_path / "cub.zip", "CUB_200_2011/")
    official = read_cub200(home)
    for source in (zipped, home.parent):
        assert is_cub200(source)
        assert load_dataset(source).ids == official.ids
        assert load_dataset(source).boxes == official.boxes
    made = import_dataset(zipped, "cub200", tmp_path / "sets")
    assert load_dataset(made).ids == official.ids
    assert not (made / "README").exists()


def test_without_boxes_there_are_none(home: Path) -> None:
    (home / "bounding_boxes.txt").unlink()
    assert set(read_cub200(home).boxes) == {None}


def test_listed_images_that_are_missing_are_left_out(home: Path) -> None:
    (home / "images" / FOLDERS[1] / "bird_1.jpg").unlink()
    assert read_cub200(home).remark.startswith("part: 5 of the 11,788 images")


def test_the_doctor_knows_its_counts(home: Path) -> None:
    report = check.check(read_cub200(home), workers=1)
    assert "train: 4 images, not 5,994" in report.differences
    assert "zero-shot, first 100 classes: 6 images, not 5,864" in report.differences
    assert sum(cub200.COUNTS.values()) == cub200.SPEC.images == 11_788


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("images.txt", None, "no images.txt in it"),
        ("classes.txt", None, "classes.txt is missing"),
        ("classes.txt", "7 007.Auk", "does not count its classes from 1"),
        ("images.txt", "no number", "images.txt, line 7 is not a number and a value"),
        ("images.txt", "1 elsewhere.jpg", "images.txt, line 7: 1 has another value above"),
        ("image_class_labels.txt", "=6 3", "has the class '3'; classes run from 1 to 2"),
        ("train_test_split.txt", "=6 2", "is neither 0 nor 1 in train_test_split.txt"),
        ("bounding_boxes.txt", "=6 1 2 0 4", "has the box '1 2 0 4'"),
        ("bounding_boxes.txt", "=6 1 2 nan 4", "has the box '1 2 nan 4'"),
    ],
)
def test_what_is_wrong_is_named(file: str, line: str | None, message: str, home: Path) -> None:
    if line is None:
        (home / file).unlink()
    else:
        lines = [*LISTS[file][:-1], line[1:]] if line.startswith("=") else [*LISTS[file], line]
        (home / file).write_text("\n".join(lines))
    with pytest.raises(InputError, match=message) as caught:
        read_cub200(home)
    assert caught.value.remedy


def test_an_image_that_no_list_has(home: Path) -> None:
    (home / "images" / FOLDERS[0] / "stray.jpg").write_bytes(jpeg(9))
    with pytest.raises(InputError, match=r"stray\.jpg' is not in images\.txt"):
        read_cub200(home)


def test_other_folders_are_not_mistaken_for_it(tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_text("my pictures")
    assert not is_cub200(tmp_path)
