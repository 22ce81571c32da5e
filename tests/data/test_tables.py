"""Tables of one's own pictures: CSV and Parquet, as people write them, and every mistake in them named."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lookalike.data import tables
from lookalike.data.catalog import UNLABELLED, Catalog
from lookalike.data.tables import read_table
from lookalike.errors import InputError

FILES = tuple(f"{folder}/{number}.png" for folder in ("cats", "dogs") for number in range(3))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Six pictures: cats/0.png to dogs/2.png."""
    for number, name in enumerate(FILES):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (0, 128, 20 * number)).save(file, "PNG")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(file.getvalue())
    return tmp_path


def csv(home: Path, text: str, name: str = "own.csv", encoding: str = "utf-8") -> Path:
    path = home / name
    path.write_bytes(text.encode(encoding))
    return path


def parquet(home: Path, **columns: Any) -> Path:
    path = home / "own.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def listing(catalog: Catalog) -> list[tuple[str, str, str]]:
    """(path, class, split) of each row."""
    names = [catalog.class_names[label] if label >= 0 else "" for label in catalog.labels]
    return list(zip(catalog.paths, names, catalog.splits.tolist(), strict=True))


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


FULL = """path,label,split,box,id
cats/0.png,cat,train,1 2 5 6,a
cats/1.png,cat,val,,b
dogs/0.png,dog,train,,c
dogs/1.png,,test,,d
"""


def test_every_column(home: Path) -> None:
    catalog = read_table(csv(home, FULL))
    assert listing(catalog) == [
        ("cats/0.png", "cat", "train"),
        ("cats/1.png", "cat", "val"),
        ("dogs/0.png", "dog", "train"),
        ("dogs/1.png", "", "test"),
    ]
    assert catalog.ids == ["a", "b", "c", "d"]
    assert catalog.boxes == [(1, 2, 5, 6), None, None, None]
    assert catalog.class_names == catalog.class_ids == ("cat", "dog")
    assert (catalog.name, catalog.root, catalog.container) == ("own", home, "folder")
    assert catalog.read_bytes(0).startswith(b"\x89PNG")


def test_the_example_in_the_docstring(home: Path) -> None:
    assert tables.__doc__
    for name in ("cats/1.jpg", "dogs/7.jpg"):
        (home / name).touch()
    catalog = read_table(csv(home, tables.__doc__.split("\n\n")[1]))
    assert listing(catalog) == [("cats/1.jpg", "cat", "train"), ("dogs/7.jpg", "dog", "val")]
    assert catalog.boxes == [(10, 20, 110, 120), None]


def test_path_and_label_suffice(home: Path) -> None:
    rows = "".join(f"{name},{name[:3]}\n" for name in FILES)
    catalog = read_table(csv(home, f"path,label\n{rows}"))
    assert catalog.ids == catalog.paths == list(FILES)
    assert Counter(catalog.splits.tolist()) == {"train": 4, "val": 2}, "one of each class is for validation"
    assert {catalog.labels[row] for row in catalog.rows_of("val")} == {0, 1}


def test_the_validation_share_and_its_seed_can_be_chosen(home: Path) -> None:
    path = csv(home, "path,label\n" + "".join(f"{name},{name[:3]}\n" for name in FILES))
    assert Counter(read_table(path, val_fraction=0.66).splits.tolist()) == {"train": 2, "val": 4}
    assert set(read_table(path, val_fraction=0).splits.tolist()) == {"train"}
    chosen = {tuple(read_table(path, split_seed=seed).splits.tolist()) for seed in range(8)}
    assert len(chosen) > 1
    with pytest.raises(InputError, match=r"val_fraction is 1\.5"):
        read_table(path, val_fraction=1.5)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_what_spreadsheets_write(home: Path, delimiter: str, encoding: str, ending: str) -> None:
    (home / "cats" / "grüße, 1.png").write_bytes((home / FILES[0]).read_bytes())
    text = FULL.replace("cats/1.png", "cats/grüße_ 1.png").replace(",", delimiter).replace("\n", ending)
    text = text.replace("cats/grüße_ 1.png", '"cats/grüße, 1.png"')
    name = "own.tsv" if delimiter == "\t" else "own.csv"
    catalog = read_table(csv(home, text, name, encoding))
    assert catalog.paths[:2] == ["cats/0.png", "cats/grüße, 1.png"]
    assert catalog.boxes[0] == (1, 2, 5, 6)


def test_other_columns_blank_lines_and_spaces_do_no_harm(home: Path) -> None:
    catalog = read_table(csv(home, "path,photographer,label\n\n cats/0.png ,me, cat \ndogs/0.png,you,dog\n\n"))
    assert listing(catalog) == [("cats/0.png", "cat", "train"), ("dogs/0.png", "dog", "train")]


@pytest.mark.parametrize(
    ("word", "split"), [("train", "train"), ("Training", "train"), ("VALID", "val"), ("validation", "val")]
)
def test_splits_have_several_names(home: Path, word: str, split: str) -> None:
    catalog = read_table(csv(home, f"path,label,split\ncats/0.png,a,{word}\ndogs/0.png,b,test\n"))
    assert catalog.splits.tolist() == [split, "test"]


def test_an_unlabelled_picture_belongs_to_test(home: Path) -> None:
    catalog = read_table(csv(home, "path,label\ncats/0.png,a\ndogs/0.png,b\ndogs/1.png,\n"))
    assert catalog.splits[2] == "test"
    assert catalog.labels[2] == UNLABELLED


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        (["1", "01", "001", "0", "00", "000"], ("0", "00", "000", "001", "01", "1")),
        (["zebra", "Ant", "ant"], ("Ant", "ant", "zebra")),
    ],
)
def test_classes_are_sorted_as_numbers_when_all_are(home: Path, labels: list[str], names: tuple[str, ...]) -> None:
    rows = "".join(f"{name},{label}\n" for name, label in zip(FILES, labels, strict=False))
    catalog = read_table(csv(home, f"path,label\n{rows}"), val_fraction=0)
    assert catalog.class_names == names
    assert [names[label] for label in catalog.labels] == labels


@pytest.mark.parametrize(
    "text", ["1 2 5 6", "1, 2, 5, 6", "[1, 2, 5, 6]", "(1 2 5 6)", " 1  2  5  6 ", "1.0 2.0 5.0 6.0"]
)
def test_boxes_in_text(home: Path, text: str) -> None:
    catalog = read_table(csv(home, f'path,label,box\ncats/0.png,a,"{text}"\ndogs/0.png,b,\n'))
    assert catalog.boxes == [(1, 2, 5, 6), None]


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.list_(pa.int32(), 4), pa.list_(pa.float64())])
def test_boxes_in_parquet(home: Path, kind: pa.DataType) -> None:
    boxes = pa.array([[1, 2, 5, 6], None], kind)
    catalog = read_table(parquet(home, path=FILES[2:4], label=["a", "b"], box=boxes))
    assert catalog.boxes == [(1, 2, 5, 6), None]


def test_one_picture_may_have_several_boxes_with_ids(home: Path) -> None:
    catalog = read_table(csv(home, "path,label,box,id\ncats/0.png,a,0 0 4 4,x\ncats/0.png,b,4 4 8 8,y\n"))
    assert catalog.paths == ["cats/0.png", "cats/0.png"]
    assert catalog.ids == ["x", "y"]


# Parquet


def test_parquet_gives_what_csv_gives(home: Path) -> None:
    from_csv = read_table(csv(home, FULL))
    columns = {"path": from_csv.paths, "label": ["cat", "cat", "dog", None], "split": from_csv.splits.tolist()}
    from_parquet = read_table(parquet(home, **columns, box=from_csv.boxes, id=from_csv.ids))
    assert from_parquet.table.equals(from_csv.table)
    assert from_parquet.class_names == from_csv.class_names


@pytest.mark.parametrize(
    ("labels", "names", "found"),
    [
        (pa.array([10, 9, 10, None]), ("9", "10"), [1, 0, 1, -1]),
        (pa.array([10.0, 9.0, 10.0, None]), ("9", "10"), [1, 0, 1, -1]),  # pandas: a column of numbers with a gap
        (pa.array(["b", "a", "b", None]).dictionary_encode(), ("a", "b"), [1, 0, 1, -1]),
        (pa.array(["b", "a", "b", ""], pa.large_string()), ("a", "b"), [1, 0, 1, -1]),
    ],
)
def test_labels_of_any_type(home: Path, labels: pa.Array, names: tuple[str, ...], found: list[int]) -> None:
    catalog = read_table(parquet(home, path=FILES[:4], label=labels), val_fraction=0)
    assert catalog.class_names == names
    assert catalog.labels.tolist() == found


def test_other_columns_in_parquet_do_no_harm(home: Path) -> None:
    about = pa.array([{"camera": "x"}] * 2)
    catalog = read_table(parquet(home, path=FILES[2:4], label=["a", "b"], about=about, size=[1.5, 2.5]))
    assert catalog.class_names == ("a", "b")


def test_our_own_catalog_comes_back_as_it_was(home: Path, tmp_path: Path) -> None:
    catalog = read_table(csv(home, FULL))
    own = tmp_path / "elsewhere" / "catalog.parquet"
    own.parent.mkdir()
    catalog.to_parquet(own)
    again = read_table(own, val_fraction=0.5)
    assert again.table.equals(catalog.table)
    assert (again.root, again.class_names, again.name) == (catalog.root, catalog.class_names, catalog.name)


def test_our_own_catalog_without_its_images(home: Path, tmp_path: Path) -> None:
    own = tmp_path / "catalog.parquet"
    Catalog.to_parquet(read_table(csv(home / "cats" / "..", FULL)), own)
    moved = pq.read_table(own)
    about = moved.schema.metadata[b"lookalike"].replace(str(home).encode(), b"/gone")
    pq.write_table(moved.replace_schema_metadata({"lookalike": about}), own)
    assert "/gone/cats/.., which is gone" in refusal(own).message


@pytest.mark.parametrize(
    "images",
    [
        pa.array([b"x", b"y"]),
        pa.array([b"x", b"y"], pa.large_binary()),
        pa.array([{"bytes": b"x", "path": "x.png"}] * 2),
    ],
)
def test_a_hugging_face_copy_is_to_be_imported(home: Path, images: pa.Array) -> None:
    error = refusal(parquet(home, image=images, label=[0, 1]))
    assert "the images are inside" in error.message
    assert error.remedy == f"Import it: lookalike data import {home / 'own.parquet'} --name NAME"


@pytest.mark.parametrize("length", [0, 3, 200, 0.5, 0.99])
def test_a_parquet_file_that_ends_early(home: Path, length: float) -> None:
    path = parquet(home, path=FILES, label=["a", "b"] * 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(length if length > 1 or not length else length * len(data))])
    assert "not a whole Parquet file" in refusal(path).message


def test_a_parquet_file_whose_rows_are_damaged(home: Path) -> None:
    path = parquet(home, path=FILES, label=["a", "b"] * 3)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)  # the columns are still known
    path.write_bytes(data)
    assert "not a whole Parquet file" in refusal(path).message


def test_a_file_that_is_no_table_and_no_file(home: Path) -> None:
    path = home / "own.parquet"
    path.write_text("path,label\n")
    assert "not a whole Parquet file" in refusal(path).message
    assert "not a whole Parquet file" in refusal(home / "none.parquet").message
    assert "cannot be read as a table" in refusal(home / "none.csv").message
    assert "cannot be read as a table" in refusal(home / "cats").message


# mistakes


def test_a_csv_that_is_not_utf8(home: Path) -> None:
    path = csv(home, FULL.replace("cat,", "chat à poil,"), encoding="latin-1")
    error = refusal(path)
    assert "cannot be read as a table" in error.message
    assert error.remedy == "Save it as CSV in UTF-8."
    assert "cannot be read as a table" in refusal(csv(home, FULL, encoding="utf-16")).message


@pytest.mark.parametrize("rest", ['cats/0.png,"a"b\n', 'cats/0.png,"a\n'])
def test_quotes_that_do_not_match(home: Path, rest: str) -> None:
    assert "cannot be read as a table" in refusal(csv(home, f"path,label\n{rest}")).message


@pytest.mark.parametrize(
    ("header", "message", "remedy"),
    [
        ("file,label", "no column 'path'.", "there are: file, label."),
        ("path,Label", "no column 'label'. Is it 'Label'?", "Name the columns path,label; there are: path, Label."),
        ("path,lable", "no column 'label'. Is it 'lable'?", "path,label"),
        ("paths,label", "no column 'path'. Is it 'paths'?", "path,label"),
        ("path,label,splitt", "unknown column 'splitt'.", "Did you mean 'split'?"),
        ("path,label,Box", "unknown column 'Box'.", "Did you mean 'box'?"),
        ("path,label,path", "two columns are called 'path'.", "Keep one of them."),
        ("path,label,box,box", "two columns are called 'box'.", "Keep one of them."),
        ("", "no column 'path'.", "there are: none."),
        ("path label", "no column 'path'.", "there are: path label."),
    ],
)
def test_columns_that_are_wrong(home: Path, header: str, message: str, remedy: str) -> None:
    error = refusal(csv(home, f"{header}\n"))
    assert error.message.endswith(message)
    assert remedy in error.remedy


def test_columns_that_are_wrong_in_parquet(home: Path) -> None:
    assert "no column 'label'. Is it 'labl'?" in refusal(parquet(home, path=FILES, labl=[0] * 6)).message


@pytest.mark.parametrize("rows", ["", "cats/0.png,cat\ncats/1.png,cat\n", "cats/0.png,\n"])
def test_fewer_than_two_classes(home: Path, rows: str) -> None:
    assert "different labels" in refusal(csv(home, f"path,label\n{rows}")).message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cats/0.png,a,train,,,more", "more fields than columns"),
        (",a,train,,", "no path"),
        ("/etc/x.png,a,train,,", "'/etc/x.png' is an absolute path"),
        ("cats/0.png,a,trian,,", "unknown split 'trian'"),
        ("cats/0.png,,train,,", "'cats/0.png' is in train and has no label"),
        ("cats/0.png,,val,,", "'cats/0.png' is in val and has no label"),
        ("cats/0.png,a,,,", "no split, where other rows have one"),
        ("cats/0.png,a,train,1 2 3,", "the box '1 2 3' is not four whole numbers"),
        ("cats/0.png,a,train,1 2 3 4 5,", "is not four whole numbers"),
        ("cats/0.png,a,train,1 2 x 4,", "is not four whole numbers"),
        ("cats/0.png,a,train,1 2 3.5 4,", "is not four whole numbers"),
        ("cats/0.png,a,train,0 0 nan 4,", "is not four whole numbers"),
        ("cats/0.png,a,train,0 0 1e999 4,", "is not four whole numbers"),
        ("cats/0.png,a,train,0 0 4294967296 4,", "is not four whole numbers"),
        ("cats/0.png,a,train,4 0 4 4,", "the box '4 0 4 4' is empty"),
        ("cats/0.png,a,train,0 5 4 4,", "is empty"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_its_line(home: Path, row: str, message: str) -> None:
    text = f"path,label,split,box,id\ndogs/0.png,b,train,,\ndogs/1.png,c,train,,\n{row}\n"
    found = refusal(csv(home, text)).message
    assert "own.csv, row 4: " in found
    assert message in found


def test_a_row_that_is_wrong_in_parquet_is_counted_from_one(home: Path) -> None:
    path = parquet(home, path=["cats/0.png", ""], label=["a", "b"])
    assert refusal(path).message == f"{path}, row 2: no path."
    path = parquet(home, path=FILES[2:4], label=["a", "b"], box=[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.5, 4.0]])
    assert "row 2: the box '[0.0, 0.0, 4.5, 4.0]' is not four whole numbers" in refusal(path).message
    path = parquet(home, path=FILES[2:4], label=["a", "b"], box=[7, 7])
    assert "row 1: the box '7' is not four whole numbers" in refusal(path).message


def test_a_misspelt_split_gets_a_suggestion(home: Path) -> None:
    path = csv(home, "path,label,split\ncats/0.png,a,trian\ndogs/0.png,b,train\n")
    assert refusal(path).remedy.startswith("Use train, val or test. Did you mean 'trai")


def test_images_that_are_not_there(home: Path) -> None:
    path = csv(home, "path,label\ncats/0.png,a\ncats/8.png,b\n")
    assert refusal(path).message == f"{path}: 'cats/8.png' is not there."
    path = csv(home, "path,label\ncats/7.png,a\ncats/8.png,b\ncats,b\n")
    error = refusal(path)
    assert error.message == f"{path}: 'cats/7.png' and 2 more are not there."
    assert str(home) in error.remedy


def test_an_id_that_occurs_twice(home: Path) -> None:
    with pytest.raises(InputError, match=r"the id 'cats/0\.png' occurs twice"):
        read_table(csv(home, "path,label\ncats/0.png,a\ncats/0.png,b\n"))
