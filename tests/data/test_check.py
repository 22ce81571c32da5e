"""`data check` on sound data and on every problem: damaged, doubled, contradictory, mislabelled, incomplete."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_factory import drawn, encoded
from lookalike.data import check as checks
from lookalike.data.catalog import UNLABELLED, Catalog, Row, Split
from lookalike.data.check import CheckReport, check
from lookalike.data.image_folder import read_folder
from lookalike.data.registry import differences
from lookalike.data.tiny_imagenet import CLASSES, COUNTS, read_tiny_imagenet

WNIDS = ("n01443537", "n02124075", "n04067472")


def picture(seed: int, size: int = 16, kind: str = "PNG") -> bytes:
    return encoded(drawn(seed, size), kind)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Cats and dogs: three training, one validation and one test picture each."""
    home = tmp_path / "pets"
    seed = 0
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        for name in ("cat", "dog"):
            (home / split / name).mkdir(parents=True)
            for number in range(count):
                (home / split / name / f"{number}.png").write_bytes(picture(seed := seed + 1))
    return home


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A Tiny ImageNet of three classes with 3 training and 2 validation images each, and 4 test images."""
    home = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        (home / "train" / wnid / "images").mkdir(parents=True)
        for image in range(3):
            (home / "train" / wnid / "images" / f"{wnid}_{image}.JPEG").write_bytes(picture(9 * label + image))
    for split, count in (("val", 6), ("test", 4)):
        (home / split / "images").mkdir(parents=True)
        for image in range(count):
            (home / split / "images" / f"{split}_{image}.JPEG").write_bytes(picture(100 * count + image))
    lines = [f"val_{image}.JPEG\t{WNIDS[image % 3]}\t0\t0\t7\t7\n" for image in range(6)]
    (home / "val" / "val_annotations.txt").write_text("".join(lines))
    (home / "wnids.txt").write_text("\n".join(WNIDS))
    return home


def zipped(home: Path) -> Path:
    path = home.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(path for path in home.rglob("*") if path.is_file()):
            archive.write(file, f"{home.name}/{file.relative_to(home).as_posix()}")
    return path


def test_healthy_data(home: Path) -> None:
    report = check(read_folder(home))
    assert report.usable
    assert report.verdict == "All is well."
    assert (report.name, report.root, report.layout) == ("pets", str(home), "2 classes in a folder")
    assert report.counts == {
        "train": {"cat": 3, "dog": 3},
        "val": {"cat": 1, "dog": 1},
        "test": {"cat": 1, "dog": 1},
    }
    assert report.sizes == {(16, 16): 10}
    assert not any((report.undecodable, report.duplicates, report.conflicts, report.labels, report.differences))


def test_the_printed_report(home: Path) -> None:
    (home / "train" / "cat" / "9.png").write_bytes(picture(77, 20))
    assert str(check(read_folder(home))) == (
        "pets: 2 classes in a folder\n"
        f"  {home}\n"
        "\n"
        "  train         7 images  2 classes of 3 to 4\n"
        "  val           2 images  2 classes of 1\n"
        "  test          2 images  2 classes of 1\n"
        "  10 of 16 × 16 pixels, 1 of 1 other sizes\n"
        "\n"
        "All is well."
    )


def test_sizes_are_width_by_height_the_most_common_first(home: Path) -> None:
    for number in range(2):
        Image.new("RGB", (30, 20), (number, 0, 0)).save(home / "train" / "dog" / f"wide{number}.png")
    Image.new("RGB", (7, 9)).save(home / "train" / "cat" / "small.png")
    report = check(read_folder(home))
    assert list(report.sizes.items()) == [((16, 16), 10), ((30, 20), 2), ((7, 9), 1)]
    assert "  10 of 16 × 16 pixels, 3 of 2 other sizes" in str(report)


def test_a_zip_is_as_healthy_as_its_folder(home: Path) -> None:
    from_folder, from_zip = check(read_folder(home)), check(read_folder(zipped(home)), workers=4)
    assert from_zip.layout == "2 classes in a zip"
    assert from_zip.counts == from_folder.counts
    assert from_zip.sizes == from_folder.sizes
    assert from_zip.verdict == "All is well."


def test_progress_and_chunks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHUNK", 4)
    reports: list[tuple[int, int]] = []
    (home / "val" / "dog" / "0.png").write_bytes(b"")
    report = check(read_folder(home), workers=3, progress=lambda *done: reports.append(done))
    assert reports == [(4, 10), (8, 10), (10, 10)]
    assert report.undecodable == [("val/dog/0.png", "empty")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>", "not an image in a format that can be read"),
        (picture(0)[:100], "damaged image"),
        (picture(0, 64, "JPEG")[:900], "damaged image"),
    ],
)
@pytest.mark.parametrize("as_zip", [False, True])
def test_undecodable_images_are_listed_with_their_reason(home: Path, data: bytes, reason: str, as_zip: bool) -> None:
    (home / "train" / "dog" / "1.png").write_bytes(data)
    report = check(read_folder(zipped(home) if as_zip else home))
    ((path, found),) = report.undecodable
    assert path.endswith("train/dog/1.png")
    assert found.startswith(reason)
    assert not found.endswith(".")
    assert not report.usable
    assert report.verdict == "1 images cannot be decoded: replace or remove them."
    assert f"  cannot be decoded (1):\n    {path}: {reason}" in str(report)
    assert sum(report.sizes.values()) == 9, "its size is not known"
    assert sum(report.counts["train"].values()) == 6, "but it is there"


def test_an_image_that_is_gone_cannot_be_decoded(home: Path) -> None:
    catalog = read_folder(home)
    (home / "train" / "cat" / "0.png").unlink()
    ((path, reason),) = check(catalog).undecodable
    assert path == "train/cat/0.png"
    assert "No such file" in reason


def test_a_stored_image_whose_checksum_is_wrong(home: Path) -> None:
    path = zipped(home)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 0xFF
    path.write_bytes(data)
    report = check(read_folder(path))
    assert len(report.undecodable) == 1
    assert "Bad CRC-32" in report.undecodable[0][1]


def test_a_box_that_holds_nothing(home: Path) -> None:
    rows = [
        Row("train/cat/0.png", 0, "train", (0, 0, 8, 8)),
        Row("train/dog/0.png", 1, "train", (20, 20, 30, 30)),
    ]
    report = check(Catalog.from_rows(rows, root=home, class_names=("cat", "dog"), name="boxes"))
    ((path, reason),) = report.undecodable
    assert path == "train/dog/0.png"
    assert "(20, 20, 30, 30)" in reason
    assert report.sizes == {(16, 16): 1}, "the picture's size, not the box's"


def test_nothing_can_be_decoded(home: Path) -> None:
    catalog = read_folder(home)
    for path in catalog.paths:
        (home / path).write_bytes(b"")
    report = check(catalog)
    assert len(report.undecodable) == 10
    assert "  no image can be decoded\n" in str(report)
    assert report.duplicates == [], "that they are all empty is said already"


def copy(home: Path, source: str, *targets: str) -> None:
    for target in targets:
        shutil.copy(home / source, home / target)


def test_the_same_image_in_several_splits(home: Path) -> None:
    copy(home, "train/cat/0.png", "val/cat/a.png", "test/cat/b.png")
    copy(home, "train/dog/0.png", "test/dog/c.png")
    copy(home, "train/dog/1.png", "train/dog/d.png")  # twice in one split: no harm
    report = check(read_folder(home))
    assert sorted(map(sorted, report.duplicates)) == [
        ["test/cat/b.png", "train/cat/0.png", "val/cat/a.png"],
        ["test/dog/c.png", "train/dog/0.png"],
    ]
    assert report.conflicts == []
    assert report.usable
    assert report.verdict == "Usable; images in more than one split make results look better than they are."
    assert "  the same image in more than one split (2):\n" in str(report)


def test_the_same_image_in_two_classes(home: Path) -> None:
    copy(home, "train/cat/0.png", "train/dog/a.png")
    report = check(read_folder(home))
    assert report.conflicts == [["train/cat/0.png", "train/dog/a.png"]]
    assert report.duplicates == []
    assert report.usable
    assert report.verdict.startswith("Usable, but some images stand in more than one class")
    assert "  the same image with different labels (1):\n    train/cat/0.png = train/dog/a.png\n" in str(report)


def test_an_unlabelled_twin_contradicts_nobody(home: Path) -> None:
    copy(home, "train/cat/0.png", "test/a.png")
    report = check(read_folder(home))
    assert report.conflicts == []
    assert report.duplicates == [["test/a.png", "train/cat/0.png"]]
    assert report.counts["test"] == {"": 1, "cat": 1, "dog": 1}


def test_the_same_pixels_in_other_bytes_are_the_same_image(home: Path) -> None:
    Image.open(home / "train" / "cat" / "0.png").save(home / "test" / "cat" / "a.png", compress_level=0)
    assert check(read_folder(home)).duplicates == [["test/cat/a.png", "train/cat/0.png"]]


def made_of(home: Path, *rows: tuple[str, int, Split], names: tuple[str, ...] = ("cat", "dog")) -> CheckReport:
    catalog = Catalog.from_rows([Row(*row) for row in rows], root=home, class_names=names, name="own")
    return check(catalog)


def test_labels_that_are_missing(home: Path) -> None:
    report = made_of(
        home,
        ("train/cat/0.png", 0, "train"),
        ("train/dog/0.png", 1, "train"),
        ("train/dog/1.png", UNLABELLED, "train"),
        ("train/dog/2.png", UNLABELLED, "train"),
        ("val/dog/0.png", UNLABELLED, "val"),
        ("test/dog/0.png", UNLABELLED, "test"),
    )
    assert report.labels == ["2 images in train have no label", "1 images in val have no label"]
    assert not report.usable
    assert report.verdict == "Not usable: 2 images in train have no label."
    assert report.counts["train"] == {"": 2, "cat": 1, "dog": 1}
    assert "  test          1 images  without labels\n" in str(report)
    assert "  wrong labels (2):\n    2 images in train have no label\n" in str(report)


def test_classes_without_training_images(home: Path) -> None:
    report = made_of(home, ("train/cat/0.png", 0, "train"), ("val/dog/0.png", 1, "val"), names=("cat", "dog", "owl"))
    assert report.labels == ["2 classes have no training images, such as 'dog'"]
    assert not report.usable


def test_one_class_only(home: Path) -> None:
    report = made_of(home, ("train/cat/0.png", 0, "train"), names=("cat",))
    assert report.labels == ["1 class only"]
    assert report.verdict == "Not usable: 1 class only."


def test_what_is_worst_is_the_verdict(home: Path) -> None:
    copy(home, "train/cat/0.png", "train/dog/a.png", "val/cat/a.png")
    catalog = read_folder(home)
    assert check(catalog).verdict.startswith("Usable, but some images stand in more than one class")
    (home / "train" / "dog" / "2.png").write_bytes(b"")
    assert "cannot be decoded" in check(catalog).verdict


def test_many_findings_are_cut_in_print_and_whole_in_json(home: Path) -> None:
    for number in range(13):
        (home / "train" / "cat" / f"bad{number:02d}.png").write_bytes(b"")
    report = check(read_folder(home))
    assert str(report).count(": empty") == 10
    assert "  cannot be decoded (13):\n" in str(report)
    assert "    and 3 more\n" in str(report)
    values = json.loads(json.dumps(report.to_json()))
    assert values["undecodable"] == [{"path": f"train/cat/bad{i:02d}.png", "reason": "empty"} for i in range(13)]


def test_the_report_as_json(home: Path) -> None:
    copy(home, "train/cat/0.png", "val/dog/a.png")
    report = check(read_folder(home))
    values = json.loads(json.dumps(report.to_json()))
    assert values == {
        "name": "pets",
        "root": str(home),
        "layout": "2 classes in a folder",
        "remark": "",
        "usable": True,
        "verdict": report.verdict,
        "counts": {"train": {"cat": 3, "dog": 3}, "val": {"cat": 1, "dog": 2}, "test": {"cat": 1, "dog": 1}},
        "sizes": [{"width": 16, "height": 16, "images": 11}],
        "undecodable": [],
        "duplicates": [["train/cat/0.png", "val/dog/a.png"]],
        "conflicts": [["train/cat/0.png", "val/dog/a.png"]],
        "labels": [],
        "differences": [],
        "passed_over": {},
        "zero_shot": None,
    }


# Tiny ImageNet


def test_a_small_tiny_imagenet_differs_from_the_official_one(tiny: Path) -> None:
    report = check(read_tiny_imagenet(tiny))
    assert report.layout == "Tiny ImageNet, official layout, in a folder"
    assert report.differences == [
        "3 classes with images, not 200",
        "train: 9 images, not 100,000",
        "train: 3 images a class, not 500",
        "val: 6 images, not 10,000",
        "val: 2 images a class, not 50",
        "test: 4 images, not 10,000",
    ]
    assert report.usable
    assert report.verdict == "Usable, but not the official set: say so beside every number measured on it."
    assert report.remark.startswith("not the whole Tiny ImageNet")
    assert f"  {report.remark}\n" in str(report)
    assert report.counts["test"] == {"": 4}


def test_a_class_that_has_other_counts_is_named(tiny: Path) -> None:
    (tiny / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_0.JPEG").unlink()
    shutil.rmtree(tiny / "test")
    differences = check(read_tiny_imagenet(tiny)).differences
    assert differences[1:5] == [
        "train: 8 images, not 100,000",
        f"train, class {WNIDS[0]}: 3 images, not 500",
        f"train, class {WNIDS[1]}: 2 images, not 500",
        f"train, class {WNIDS[2]}: 3 images, not 500",
    ]
    assert differences[-1] == "test: 0 images, not 10,000"


def test_the_layout_says_how_it_lies(tiny: Path) -> None:
    assert check(read_tiny_imagenet(zipped(tiny))).layout == "Tiny ImageNet, official layout, in a zip"
    for image in range(6):
        (tiny / "val" / WNIDS[image % 3] / "images").mkdir(parents=True, exist_ok=True)
        name = f"val_{image}.JPEG"
        (tiny / "val" / "images" / name).rename(tiny / "val" / WNIDS[image % 3] / "images" / name)
    (tiny / "val" / "images").rmdir()
    sorted_into = "Tiny ImageNet, validation images sorted into class folders"
    assert check(read_tiny_imagenet(tiny)).layout == f"{sorted_into}, in a folder"
    assert check(read_tiny_imagenet(zipped(tiny))).layout == f"{sorted_into}, in a zip"


@pytest.fixture(scope="module")
def official() -> Catalog:
    """A catalog with the official counts; row 500 * label + i is training image i of the class."""
    rows = [
        Row("one.png", UNLABELLED if split == "test" else label, split, None, f"{split}/{label}/{number}")
        for split, total in COUNTS.items()
        for label in range(CLASSES)
        for number in range(total // CLASSES)
    ]
    wnids = [f"n{label:08d}" for label in range(CLASSES)]
    return Catalog.from_rows(rows, root=Path("nowhere"), class_names=wnids, name="tiny-imagenet")


def test_the_official_counts_are_no_difference(official: Catalog) -> None:
    assert len(official) == 120_000
    assert differences(official) == []


def test_one_image_more_or_less_is_a_difference(official: Catalog) -> None:
    rows = np.delete(np.arange(120_000), [7 * 500, 100_000])  # the first training image of class 7, validation of 0
    assert differences(official.select([8 * 500, *rows])) == [
        "train, class n00000007: 499 images, not 500",
        "train, class n00000008: 501 images, not 500",
        "val: 9,999 images, not 10,000",
        "val, class n00000000: 49 images, not 50",
    ]
    assert differences(official.select(range(119_999))) == ["test: 9,999 images, not 10,000"]


def test_only_tiny_imagenet_is_compared_with_it(home: Path) -> None:
    assert check(read_folder(home)).differences == []


@pytest.mark.real_data
def test_real_images(real_data: Path) -> None:
    catalog = read_tiny_imagenet(real_data / "tiny-imagenet-200")
    some = catalog.select(np.linspace(0, len(catalog) - 1, min(len(catalog), 2000)).astype(int))
    report = check(some)
    assert report.usable
    assert report.sizes == {(64, 64): len(some)}
    assert report.layout == "Tiny ImageNet, official layout, in a folder"
    assert Counter({split: sum(by_class.values()) for split, by_class in report.counts.items()}) == Counter(
        some.splits.tolist()
    )
