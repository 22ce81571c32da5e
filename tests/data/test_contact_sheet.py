"""The contact sheet: the page's size, what stands where, which pictures, and what cannot be shown."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.data import contact_sheet as sheet
from lookalike.data.catalog import UNLABELLED, Catalog, Row, Split
from lookalike.data.contact_sheet import GAP, HEADER, LINE, MARGIN, TILE, contact_sheet
from lookalike.data.synthetic import CLASS_NAMES, render
from lookalike.data.tiny_imagenet import read_tiny_imagenet
from lookalike.errors import InputError
from lookalike.image import decode

COLOURS = [(40 * label + 20, 10 * number + 5, 100) for label in range(5) for number in range(6)]
STEP = LINE + TILE + 3 * GAP  # from one row of pictures to the next


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Five classes of six plain pictures each, told apart by their colours, the last of each in val; two unlabelled."""
    rows = []
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (10, 10), colour).save(tmp_path / f"{i}.png")
        split: Split = "val" if i % 6 == 5 else "train"
        rows.append(Row(f"{i}.png", i // 6, split))
    for i in (30, 31):
        Image.new("RGB", (10, 10), "white").save(tmp_path / f"{i}.png")
        rows.append(Row(f"{i}.png", UNLABELLED, "test"))
    names, ids = [f"word {i}" for i in range(5)], [f"id{i}" for i in range(5)]
    return Catalog.from_rows(rows, root=tmp_path, class_names=names, class_ids=ids, name="colours")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "page.png"


def tile(path: Path, line: int, place: int, column: int = 0, across: int = 5) -> np.ndarray:
    """The pixels of a picture on the page, (TILE, TILE, 3)."""
    left = MARGIN + column * (across * (TILE + GAP) - GAP + MARGIN) + place * (TILE + GAP)
    top = HEADER + line * STEP + GAP + LINE
    return np.asarray(Image.open(path))[top : top + TILE, left : left + TILE]


def shown(path: Path, lines: int, across: int, columns: int = 1) -> list[list[int]]:
    """Numbers of the pictures on the page by their colours, one list a class."""
    found = []
    for column in range(columns):
        for line in range(lines):
            middles = [tuple(tile(path, line, place, column, across)[TILE // 2, TILE // 2]) for place in range(across)]
            found.append([COLOURS.index(colour) for colour in middles if colour in COLOURS])
    return found


def refusal(catalog: Catalog, path: Path, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        contact_sheet(catalog, path, **options)  # type: ignore[arg-type]
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert not path.is_file()
    return caught.value


def test_few_classes_stand_in_one_column(catalog: Catalog, page: Path) -> None:
    assert contact_sheet(catalog, page, classes=["word 0", "word 1", "word 2"], per_class=5) == page
    with Image.open(page) as image:
        assert image.mode == "RGB"
        assert image.size == (5 * (TILE + GAP) - GAP + 2 * MARGIN, HEADER + 3 * STEP + MARGIN - 2 * GAP)
    assert [len(row) for row in shown(page, 3, 5)] == [5, 5, 5]


def test_many_classes_stand_in_two_columns(catalog: Catalog, page: Path) -> None:
    contact_sheet(catalog, page)
    with Image.open(page) as image:
        column = 5 * (TILE + GAP) - GAP
        assert image.size == (2 * column + 3 * MARGIN, HEADER + 3 * STEP + MARGIN - 2 * GAP)
    found = shown(page, 3, 5, 2)
    assert [sorted(row) for row in found] == [[6 * label + i for i in range(5)] for label in range(5)] + [[]]


def test_wide_rows_stand_in_one_column(tmp_path: Path, page: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "0.png")
    rows = [Row("0.png", label, "train", None, f"{label}/{i}") for label in range(4) for i in range(11)]
    wide = Catalog.from_rows(rows, root=tmp_path, class_names="abcd", name="wide")
    contact_sheet(wide, page, per_class=11)
    with Image.open(page) as image:
        assert image.size == (11 * (TILE + GAP) - GAP + 2 * MARGIN, HEADER + 4 * STEP + MARGIN - 2 * GAP)


def test_a_small_page_has_room_for_its_title(catalog: Catalog, page: Path) -> None:
    contact_sheet(catalog, page, classes=["id1"], per_class=1)
    with Image.open(page) as image:
        assert image.size == (480, HEADER + STEP + MARGIN - 2 * GAP)


def test_classes_are_shown_in_the_order_asked_for_by_name_or_id(catalog: Catalog, page: Path) -> None:
    contact_sheet(catalog, page, classes=["word 3", "id0", "id3"])
    assert [{i // 6 for i in row} for row in shown(page, 2, 5)] == [{3}, {0}], "and once only"


def test_no_classes_named_are_all(catalog: Catalog, page: Path, tmp_path: Path) -> None:
    contact_sheet(catalog, page)
    contact_sheet(catalog, tmp_path / "all.png", classes=[])
    assert (tmp_path / "all.png").read_bytes() == page.read_bytes()


def test_pictures_are_drawn_without_repetition_from_the_split(catalog: Catalog, page: Path) -> None:
    contact_sheet(catalog, page, classes=["word 2"], per_class=50)
    (found,) = shown(page, 1, 5)
    assert sorted(found) == [12, 13, 14, 15, 16], "all five there are, each once; the one in val is not"
    contact_sheet(catalog, page, classes=["word 2"], per_class=50, split="val")
    with Image.open(page) as image:
        assert image.width == 480
    assert tuple(tile(page, 0, 0, across=1)[48, 48]) == COLOURS[17]


def test_the_seed_says_which_pictures(catalog: Catalog, page: Path, tmp_path: Path) -> None:
    some = {"classes": ["id0", "id1"], "per_class": 2}
    pages = [contact_sheet(catalog, tmp_path / f"{seed}.page.png", seed=seed, **some) for seed in range(4)]
    contact_sheet(catalog, page, seed=2, **some)
    assert page.read_bytes() == pages[2].read_bytes()
    chosen = [shown(path, 2, 2) for path in pages]
    assert len({str(rows) for rows in chosen}) == 4
    assert all(len(set(row)) == 2 for rows in chosen for row in rows)


def test_a_picture_fills_its_place_but_for_rounded_corners(tmp_path: Path, page: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(render(CLASS_NAMES[0], np.random.default_rng(0), 120)).save(file, "PNG")
    (tmp_path / "0.png").write_bytes(file.getvalue())
    rows = [Row("0.png", 0, "train", None, "whole"), Row("0.png", 1, "train", (20, 20, 60, 60), "part")]
    contact_sheet(Catalog.from_rows(rows, root=tmp_path, class_names=("a", "b"), name="two"), page)
    inside = slice(8, TILE - 8)
    for line, box in enumerate((None, (20, 20, 60, 60))):
        there = tile(page, line, 0, across=1)
        assert np.array_equal(there[inside], decode(file.getvalue(), TILE, box=box)[inside])
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            assert there[corner].tolist() == [255, 255, 255]
        assert (np.asarray(Image.open(page))[: HEADER // 2] < 128).any(), "a title"


def ink(path: Path, line: int, width: int) -> np.ndarray:
    """Which pixels of a class's name are written, (LINE, width)."""
    top = HEADER + line * STEP + GAP
    return np.asarray(Image.open(path).convert("L"))[top : top + LINE, MARGIN : MARGIN + width] < 128


def test_names_stand_above_their_pictures(catalog: Catalog, page: Path, tmp_path: Path) -> None:
    contact_sheet(catalog, page, classes=["id4", "id1"])
    contact_sheet(catalog, tmp_path / "turned.png", classes=["id1", "id4"])
    first, second = ink(page, 0, 480), ink(page, 1, 480)
    assert first.any()
    assert not np.array_equal(first, second)
    assert np.array_equal(ink(tmp_path / "turned.png", 0, 480), second)
    assert np.array_equal(ink(tmp_path / "turned.png", 1, 480), first)


def test_long_and_odd_names_keep_to_their_room(catalog: Catalog, page: Path) -> None:
    named = Catalog(
        catalog.table, catalog.root, ("W" * 300, "tab\there\nnew", "", "ü東", "x"), catalog.class_ids, "n" * 500
    )
    contact_sheet(named, page, per_class=2, classes=["id0", "id1", "id2"])
    picture = np.asarray(Image.open(page).convert("L"))
    assert picture.shape[1] == 480
    assert (picture[:HEADER, 480 - MARGIN :] == 255).all(), "the title ends at the margin"
    room = 2 * (TILE + GAP) - GAP
    written = ink(page, 0, 440)
    assert written[:, room - 30 : room].any()
    assert not written[:, room:].any()


def test_what_the_title_says(catalog: Catalog) -> None:
    assert sheet._title(catalog, "train", 3) == ("colours", "train: 25 images, 3 of 5 classes shown")
    assert sheet._title(catalog, "test", 0) == ("colours", "test: 2 images")
    remarked = Catalog(
        catalog.table, catalog.root, catalog.class_names, catalog.class_ids, "colours", remark="half of it"
    )
    assert sheet._title(remarked, "val", 5)[1] == "val: 5 images, 5 of 5 classes shown; half of it"


def test_unlabelled_pictures_are_shown_together(catalog: Catalog, page: Path) -> None:
    contact_sheet(catalog, page, split="test")
    with Image.open(page) as image:
        assert image.height == HEADER + STEP + MARGIN - 2 * GAP
    assert ink(page, 0, 200).any()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_types_of_files(catalog: Catalog, tmp_path: Path, suffix: str) -> None:
    path = contact_sheet(catalog, str(tmp_path / f"page{suffix}"), per_class=2)
    assert path == tmp_path / f"page{suffix}"
    with Image.open(path) as image:
        image.load()
        assert image.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")
    assert [one.name for one in tmp_path.glob("*page*")] == [path.name]


# what cannot be shown


@pytest.mark.parametrize("name", ["page.pdf", "page", "page.gif", "png"])
def test_another_type_of_file(catalog: Catalog, tmp_path: Path, name: str) -> None:
    error = refusal(catalog, tmp_path / name)
    assert error.message == f"{tmp_path / name}: cannot write this type of file."


def test_a_class_that_does_not_exist(catalog: Catalog, page: Path) -> None:
    error = refusal(catalog, page, classes=["word 0", "wort 1"])
    assert error.message.startswith("No class is called 'wort 1'. Did you mean 'word ")
    assert "word 0, word 1" in error.remedy
    assert not page.parent.exists()


def test_a_split_and_a_class_without_pictures(catalog: Catalog, page: Path) -> None:
    trained = catalog.select(catalog.rows_of("train"))
    error = refusal(trained, page, split="val")
    assert error.message == f"{catalog.root}: no images in val."
    assert error.remedy.endswith("there are: train.")
    error = refusal(trained.select(range(10)), page, classes=["id3"])
    assert error.message == "train has no images of 'word 3'."


@pytest.mark.parametrize("per_class", [0, -1, 801])
def test_too_few_and_too_many_pictures(catalog: Catalog, page: Path, per_class: int) -> None:
    error = refusal(catalog, page, per_class=per_class)
    assert error.message == f"{per_class} images of 5 classes do not fit on a page."
    assert error.remedy.startswith("Choose 1 to 800 a class")


def test_a_picture_that_cannot_be_decoded(catalog: Catalog, page: Path) -> None:
    (catalog.root / "13.png").write_bytes(b"x")
    assert refusal(catalog, page).message.startswith("13.png: ")
    assert not page.parent.exists()


@pytest.mark.parametrize(("suffix", "longest"), [(".webp", 16_383), (".jpg", 65_500)])
def test_a_page_too_large_for_its_type(tmp_path: Path, suffix: str, longest: int) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "0.png")
    count = (longest + GAP - 2 * MARGIN) // (TILE + GAP)  # fit
    rows = [Row("0.png", label % 2, "train", None, str(label)) for label in range(2 * count + 2)]
    many = Catalog.from_rows(rows, root=tmp_path, class_names=("a", "b"), name="many")
    error = refusal(many, tmp_path / f"page{suffix}", classes=["a"], per_class=count + 1)
    assert "is too large for this type of file" in error.message
    assert ".png" in error.remedy
    contact_sheet(many, tmp_path / f"page{suffix}", classes=["a"], per_class=count)


def test_a_page_that_cannot_be_written(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be written" in refusal(catalog, tmp_path / "file" / "page.png").message
    (tmp_path / "page.png").mkdir()
    assert "cannot be written (Is a directory)" in refusal(catalog, tmp_path / "page.png").message
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_page_that_was_there_is_replaced(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_text("old")
    contact_sheet(catalog, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.real_data
def test_real_images(real_data: Path, page: Path) -> None:
    catalog = read_tiny_imagenet(real_data / "tiny-imagenet-200")
    contact_sheet(catalog, page, classes=catalog.class_names[:12], per_class=4)
    with Image.open(page) as image:
        assert image.size == (2 * (4 * (TILE + GAP) - GAP) + 3 * MARGIN, HEADER + 6 * STEP + MARGIN - 2 * GAP)
        assert np.asarray(image).std() > 40
