"""Stanford Online Products: its two lists are the split and the classes; lists that do not fit are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike.data import check, stanford_products
from lookalike.data.import_dataset import import_dataset
from lookalike.data.registry import load_dataset
from lookalike.data.stanford_products import HEADER, is_stanford_products, read_stanford_products
from lookalike.errors import InputError
from small_sets import jpeg, zip_of

TRAIN = ["1 1 1 bicycle_final/11_0.JPG", "2 1 1 bicycle_final/11_1.JPG", "3 2 5 lamp_final/12_0.JPG"]
TEST = ["4 3 1 bicycle_final/13_0.JPG", "5 3 1 bicycle_final/13_1.JPG"]


def write_list(home: Path, name: str, lines: list[str]) -> None:
    (home / name).write_text("\n".join([" ".join(HEADER), *lines]) + "\n")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two products for training and one for testing, five images in all."""
    home = tmp_path / "Stanford_Online_Products"
    for number, line in enumerate([*TRAIN, *TEST]):
        place = home / line.split()[3]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg(number))
    write_list(home, "Ebay_train.txt", TRAIN)
    write_list(home, "Ebay_test.txt", TEST)
    return home


def test_the_official_folder(home: Path) -> None:
    catalog = read_stanford_products(home)
    assert catalog.name == "stanford-products"
    assert catalog.ids == [line.split()[3] for line in [*TRAIN, *TEST]]
    assert catalog.labels.tolist() == [0, 0, 1, 2, 2]
    assert catalog.splits.tolist() == ["train"] * 3 + ["test"] * 2
    assert catalog.class_names == ("bicycle 1", "lamp 2", "bicycle 3")
    assert catalog.class_ids == ("1", "2", "3")
    assert catalog.remark == "part: 5 of the 120,053 images, 3 of the 22,634 products"


def test_zip_parent_and_import_give_the_same(home: Path, tmp_path: Path) -> None:
    zipped = zip_of(home, tmp_path / "sop.zip", "Stanford_Online_Products/")
    for source in (zipped, home.parent):
        assert is_stanford_products(source)
        assert load_dataset(source).ids == read_stanford_products(home).ids
    made = import_dataset(home, "stanford-products", tmp_path / "sets")
    assert load_dataset(made).labels.tolist() == [0, 0, 1, 2, 2]


def test_classes_that_are_only_tested_are_no_fault(home: Path) -> None:
    report = check.check(read_stanford_products(home), workers=1)
    assert report.usable
    assert "test: 2 images, not 60,502" in report.differences
    assert stanford_products.SPEC.images == stanford_products.TOTAL == 120_053


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (None, TEST, "Ebay_train.txt is missing"),
        (TRAIN, [*TEST, "6 1 1 bicycle_final/11_0.JPG"], "class 1 is in both lists"),
        ([*TRAIN, "6 2"], TEST, "Ebay_train.txt, line 5 is not 'image_id class_id super_class_id path'"),
        (TRAIN, ["4 9 1 bicycle_final/13_0.JPG"], "do not count their classes from 1"),
        (["1 1 1 gone/1.JPG"], ["2 2 1 gone/2.JPG"], "no images found"),
    ],
)
def test_what_is_wrong_is_named(train: list[str] | None, test: list[str], message: str, home: Path) -> None:
    (home / "Ebay_train.txt").unlink()
    if train is not None:
        write_list(home, "Ebay_train.txt", train)
    write_list(home, "Ebay_test.txt", test)
    with pytest.raises(InputError, match=message) as caught:
        read_stanford_products(home)
    assert caught.value.remedy


def test_a_list_without_its_header(home: Path) -> None:
    (home / "Ebay_test.txt").write_text("\n".join(TEST))
    with pytest.raises(InputError, match=r"Ebay_test\.txt does not begin with 'image_id class_id"):
        read_stanford_products(home)
