from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lookalike.data.catalog import SCHEMA, UNLABELLED, Catalog, Row
from lookalike.errors import InputError

ROWS = [
    Row("train/b.png", 1, "train"),
    Row("train/a.png", 0, "train", box=(1, 2, 30, 40)),
    Row("val/c.png", 1, "val", id="sea"),
    Row("test/d.png", UNLABELLED, "test"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for row in ROWS:
        path = tmp_path / "pictures" / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row.path.encode())
    return tmp_path / "pictures"


@pytest.fixture
def catalog(root: Path) -> Catalog:
    return make(root)


def make(root: Path, rows: list[Row] = ROWS, **changed: object) -> Catalog:
    about = {"class_names": ["cat", "dog"], "class_ids": ["n1", "n2"], "name": "pets", "remark": "cropped half"}
    return Catalog.from_rows(rows, root=root, **{**about, **changed})


def test_rows_keep_their_order_and_take_their_path_as_id(catalog: Catalog) -> None:
    assert len(catalog) == 4
    assert catalog.paths == ["train/b.png", "train/a.png", "val/c.png", "test/d.png"]
    assert catalog.ids == ["train/b.png", "train/a.png", "sea", "test/d.png"]
    assert catalog.labels.dtype == np.int32
    assert catalog.labels.tolist() == [1, 0, 1, -1]
    assert catalog.table.schema == SCHEMA
    assert catalog.table.column("box").to_pylist() == [None, [1, 2, 30, 40], None, None]


def test_rows_of_a_split_are_row_numbers(catalog: Catalog) -> None:
    assert catalog.rows_of("train").tolist() == [0, 1]
    assert catalog.rows_of("test").tolist() == [3]
    assert catalog.select([0, 1]).rows_of("val").size == 0


def test_select_takes_rows_in_the_given_order_and_keeps_the_classes(catalog: Catalog) -> None:
    chosen = catalog.select(np.array([2, 0]))
    assert chosen.ids == ["sea", "train/b.png"]
    assert chosen.labels.tolist() == [1, 1]
    assert chosen.class_names == ("cat", "dog")
    assert chosen.remark == "cropped half"


def test_of_classes_keeps_their_images_and_counts_labels_anew(catalog: Catalog) -> None:
    dogs = catalog.of_classes([1])
    assert (dogs.ids, dogs.labels.tolist()) == (["train/b.png", "sea"], [0, 0])
    assert (dogs.class_names, dogs.class_ids) == (("dog",), ("n2",))
    assert (dogs.remark, dogs.root, dogs.table.schema) == (catalog.remark, catalog.root, SCHEMA)
    turned = catalog.of_classes(np.array([1, 0]))
    assert turned.ids == ["train/b.png", "train/a.png", "sea"]  # in the catalog's order, without the unlabelled one
    assert (turned.labels.tolist(), turned.class_names) == ([0, 1, 0], ("dog", "cat"))
    assert turned.boxes[1] == (1, 2, 30, 40)
    assert turned.fingerprint != catalog.fingerprint


@pytest.mark.parametrize("labels", [[2], [-1], [0, 0]])
def test_labels_that_no_class_has_or_twice_are_a_mistake(catalog: Catalog, labels: list[int]) -> None:
    with pytest.raises(ValueError, match="are not different labels of 2 classes"):
        catalog.of_classes(labels)


def test_class_ids_are_the_names_where_none_are_given(root: Path) -> None:
    assert make(root, class_ids=None).class_ids == ("cat", "dog")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no images found"),
        ([Row("a.png", 0, "train"), Row("a.png", 1, "val")], "the id 'a.png' occurs twice"),
        ([Row("a.png", 0, "train"), Row("b.png", 0, "train", id="a.png")], "the id 'a.png' occurs twice"),
        ([Row("a.png", 2, "train")], "'a.png' has label 2, which no class has.*from 0 to 1"),
        ([Row("a.png", -2, "train")], "'a.png' has label -2, which no class has"),
    ],
)
def test_rows_that_make_no_catalog_are_refused(root: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(root, rows)


def test_parquet_brings_back_the_same_catalog(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "pets.parquet"
    catalog.to_parquet(path)
    back = Catalog.from_parquet(path)
    assert back == catalog
    assert back.fingerprint == catalog.fingerprint
    assert not path.with_name("pets.parquet.partial").exists()


def test_another_programs_parquet_is_no_catalog(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(InputError, match=r"other\.parquet: not a catalog"):
        Catalog.from_parquet(path)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"other\.parquet: not a catalog"):
        Catalog.from_parquet(path)
    with pytest.raises(InputError, match=r"nowhere\.parquet: not a catalog"):
        Catalog.from_parquet(tmp_path / "nowhere.parquet")


def zipped(root: Path, *, leave_out: str = "") -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for row in ROWS:
            if row.path != leave_out:
                file.write(root / row.path, row.path)
    return path


def test_bytes_come_from_the_folder_or_the_zip(catalog: Catalog, root: Path) -> None:
    from_zip = make(zipped(root), container="zip")
    for row in range(4):
        assert catalog.read_bytes(row) == from_zip.read_bytes(row) == catalog.paths[row].encode()


def test_a_missing_image_is_named_with_the_way_to_check(catalog: Catalog, root: Path) -> None:
    (root / "val/c.png").unlink()
    with pytest.raises(InputError, match=r"cannot read 'val/c.png'.*lookalike data check"):
        catalog.read_bytes(2)


def test_the_fingerprint_is_the_same_for_the_same_files(catalog: Catalog, root: Path) -> None:
    assert make(root).fingerprint == catalog.fingerprint
    assert len(catalog.fingerprint) == 64


def _relabel(root: Path) -> Catalog:
    return make(root, [Row("train/b.png", 0, "train"), *ROWS[1:]])


def _move_to_val(root: Path) -> Catalog:
    return make(root, [Row("train/b.png", 1, "val"), *ROWS[1:]])


def _reorder(root: Path) -> Catalog:
    return make(root, ROWS[::-1])


def _rebox(root: Path) -> Catalog:
    return make(root, [ROWS[0], Row("train/a.png", 0, "train", box=(1, 2, 30, 41)), *ROWS[2:]])


def _rename_class(root: Path) -> Catalog:
    return make(root, class_names=["cat", "wolf"])


def _remove_file(root: Path) -> Catalog:
    (root / "train/b.png").unlink()
    return make(root)


def _rewrite_file(root: Path) -> Catalog:
    (root / "train/b.png").write_bytes(b"longer than before")
    return make(root)


def _touch_file(root: Path) -> Catalog:
    os.utime(root / "train/b.png", ns=(1, 1))
    return make(root)


CHANGES = [_relabel, _move_to_val, _reorder, _rebox, _rename_class, _remove_file, _rewrite_file, _touch_file]


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with_the_data(catalog: Catalog, root: Path, change) -> None:
    before = catalog.fingerprint
    assert change(root).fingerprint != before


def test_the_fingerprint_of_a_zip_sees_a_changed_member(root: Path) -> None:
    before = make(zipped(root), container="zip").fingerprint
    same = make(zipped(root), container="zip").fingerprint
    (root / "train/b.png").write_bytes(b"TRAIN/B.PNG")  # as long as before
    after = make(zipped(root), container="zip").fingerprint
    assert before == same != after


def test_a_member_missing_from_the_zip_is_named(root: Path) -> None:
    catalog = make(zipped(root, leave_out="val/c.png"), container="zip")
    with pytest.raises(InputError, match=r"pictures\.zip: cannot read 'val/c.png'"):
        catalog.read_bytes(2)


def test_two_classes_of_one_name_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="two classes are called 'crane'"):
        make(root, class_names=["crane", "crane"])


def test_a_notebook_shows_counts_and_a_few_images(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"damaged")
    rows = [Row(f"{number}.png", number - 1, "train") for number in range(3)]
    shown = make(tmp_path, rows)._repr_html_()
    assert "3 train images" in shown
    assert shown.count("<img ") == 2
    assert "no label" in shown
