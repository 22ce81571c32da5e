"""Hugging Face Parquet copies, made here as the `datasets` library writes them, and what damages them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_factory import drawn, encoded
from lookalike.data.hugging_face import Copy, shards_at, unpack
from lookalike.data.image_folder import read_folder
from lookalike.data.tiny_imagenet import CLASSES, read_tiny_imagenet
from lookalike.errors import InputError
from lookalike.image import FORMATS, decode

ANIMALS = ("cat", "dog", "owl")
WNIDS = ("n01443537", "n02124075", "n04067472")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int, kind: str = "PNG") -> bytes:
    return encoded(drawn(seed), kind)


def metadata(names: Any, image: str = "image", label: str = "label") -> dict[str, str]:
    """What `datasets` leaves in the schema."""
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def write(
    path: Path,
    labels: list[Any],
    names: Any = ANIMALS,
    *,
    images: list[Any] | None = None,
    kind: pa.DataType = STRUCT,
    columns: tuple[str, str] = ("image", "label"),
    about: dict[str, str] | None = None,
) -> Path:
    """A shard with these labels; image i is `picture(i)` unless `images` are given."""
    if images is None:
        images = [picture(i) for i in range(len(labels))]
        if pa.types.is_struct(kind):
            images = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    table = pa.table({columns[0]: pa.array(images, kind), columns[1]: pa.array(labels)})
    if about is None and names is not None:
        about = metadata(names, *columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(about), path)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two training shards and one of validation, as on the Hub."""
    home = tmp_path / "animals"
    write(home / "data" / "train-00000-of-00002.parquet", [0, 1, 2, 0])
    write(home / "data" / "train-00001-of-00002.parquet", [2, 1])
    write(home / "data" / "validation-00000-of-00001-0123abcd.parquet", [1, 0, 2])
    return home


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def copy_at(source: Path) -> Copy:
    return Copy(source, shards_at(source))


def files_of(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def refusal(source: Path, target: Path | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        copy_at(source) if target is None else unpack(copy_at(source), target)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


# where it lies


def test_a_file_and_a_folder_of_shards(home: Path) -> None:
    shards = shards_at(home)
    assert [shard.name[:11] for shard in shards] == ["train-00000", "train-00001", "validation-"]
    assert shards_at(shards[0]) == [shards[0]]
    upper = shards[0].rename(home / "TRAIN.PARQUET")
    assert shards_at(upper) == [upper]


def test_what_is_no_copy_has_no_shards(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(picture(0))
    assert shards_at(tmp_path) == []
    assert shards_at(tmp_path / "cat" / "1.png") == []
    assert shards_at(tmp_path / "nothing") == []


def test_hidden_folders_are_left_out(home: Path) -> None:
    write(home / ".cache" / "huggingface" / "train-00000-of-00002.parquet", [0])
    assert len(shards_at(home)) == 3
    assert len(shards_at(home / ".cache" / "huggingface" / ".." / ".." / "data")) == 3


@pytest.mark.parametrize("missing", ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"])
def test_a_missing_shard_is_noticed(home: Path, missing: str) -> None:
    (home / "data" / missing).unlink()
    with pytest.raises(InputError, match="1 of 2 'train' files are here") as caught:
        shards_at(home)
    assert str(home / "data") in caught.value.message


def test_shards_of_the_same_name_in_two_folders_do_not_make_up_for_each_other(home: Path) -> None:
    (home / "other").mkdir()
    (home / "data" / "train-00001-of-00002.parquet").rename(home / "other" / "train-00001-of-00002.parquet")
    with pytest.raises(InputError, match="1 of 2"):
        shards_at(home)


# what it says


def test_rows_come_in_the_order_of_the_copy(home: Path) -> None:
    copy = copy_at(home)
    assert copy.total == 9
    assert copy.classes == ANIMALS
    rows = list(copy.rows())
    assert [split for split, _, _ in rows] == ["train"] * 6 + ["val"] * 3
    assert [name for _, name, _ in rows] == ["cat", "dog", "owl", "cat", "owl", "dog", "dog", "cat", "owl"]
    assert [data for _, _, data in rows] == [picture(i) for i in (0, 1, 2, 3, 0, 1, 0, 1, 2)]


def test_more_rows_than_are_held_at_a_time(tmp_path: Path) -> None:
    path = write(
        tmp_path / "all.parquet", [i % 3 for i in range(150)], images=[{"bytes": b"x%d" % i} for i in range(150)]
    )
    rows = list(copy_at(path).rows())
    assert [data for _, _, data in rows] == [b"x%d" % i for i in range(150)]
    assert [ANIMALS.index(name or "") for _, name, _ in rows] == [i % 3 for i in range(150)]


@pytest.mark.parametrize("kind", [STRUCT, pa.struct([("bytes", pa.large_binary())]), pa.binary(), pa.large_binary()])
def test_images_as_structs_and_as_plain_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    images = [picture(i) for i in range(2)]
    values = [{"bytes": data} for data in images] if pa.types.is_struct(kind) else images
    path = write(tmp_path / "all.parquet", [1, 0], images=values, kind=kind)
    assert [row[1:] for row in copy_at(path).rows()] == [("dog", images[0]), ("cat", images[1])]


@pytest.mark.parametrize("names", [list(ANIMALS), {"2": "owl", "0": "cat", "1": "dog"}])
def test_class_names_as_a_list_and_as_numbered_ones(tmp_path: Path, names: Any) -> None:
    assert copy_at(write(tmp_path / "all.parquet", [0, 1], names)).classes == ANIMALS


def test_numbered_names_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {str(number): f"class {number}" for number in reversed(range(12))}
    assert copy_at(write(tmp_path / "all.parquet", [0, 1], names)).classes == tuple(f"class {i}" for i in range(12))


@pytest.mark.parametrize(
    "about",
    [
        None,
        {"pandas": "{}"},
        {"huggingface": "{"},
        {"huggingface": "[]"},
        {"huggingface": "{}"},
        {"huggingface": '{"info": {"features": null}}'},
        {"huggingface": '{"info": {"features": ["image", "label"]}}'},
        {"huggingface": '{"info": {"features": {"label": "int64"}}}'},
    ],
)
def test_without_names_the_labels_are_the_classes(tmp_path: Path, about: dict[str, str] | None) -> None:
    path = write(tmp_path / "all.parquet", [7, 30], None, about=about)
    copy = copy_at(path)
    assert copy.classes is None
    assert [name for _, name, _ in copy.rows()] == ["7", "30"]
    path = write(tmp_path / "words.parquet", ["seven", "thirty"], None, about=about)
    assert [name for _, name, _ in copy_at(path).rows()] == ["seven", "thirty"]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "all.parquet", [2, 0], columns=("img", "breed"))
    assert [row[1:] for row in copy_at(path).rows()] == [("owl", picture(0)), ("cat", picture(1))]
    path = write(tmp_path / "plural.parquet", [2, 0], None, columns=("pixels", "labels"))
    assert [row[1] for row in copy_at(path).rows()] == ["2", "0"]


def test_columns_that_the_metadata_names_and_that_are_gone(tmp_path: Path) -> None:
    about = metadata(ANIMALS, "photo", "breed")
    path = write(tmp_path / "all.parquet", [2, 0], columns=("image", "label"), about=about)
    assert [row[1:] for row in copy_at(path).rows()] == [("2", picture(0)), ("0", picture(1))]


@pytest.mark.parametrize("unknown", [-1, None])
def test_unlabelled_rows_have_no_class(tmp_path: Path, unknown: int | None) -> None:
    path = write(tmp_path / "test.parquet", [1, unknown])
    assert [row[:2] for row in copy_at(path).rows()] == [("test", "dog"), ("test", None)]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.parquet", "train"),
        ("all.parquet", "train"),
        ("validation-00000-of-00001.parquet", "val"),
        ("valid_1.parquet", "val"),
        ("Test-00000-of-00001.parquet", "test"),
    ],
)
def test_a_single_file_s_split_is_in_its_name(tmp_path: Path, name: str, split: str) -> None:
    assert {row[0] for row in copy_at(write(tmp_path / name, [0])).rows()} == {split}


def test_the_split_may_be_the_folder_s_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "default" / split / "0000.parquet", [0])
    assert [row[0] for row in copy_at(tmp_path).rows()] == ["test", "train"]


# what is wrong with it


def test_shards_of_no_known_split(home: Path) -> None:
    write(home / "data" / "extra.parquet", [0])
    assert refusal(home).message == f"{home / 'data' / 'extra.parquet'}: is it train, val or test?"


def test_shards_with_other_columns(home: Path) -> None:
    path = write(home / "data" / "val.parquet", [0], columns=("image", "breed"))
    assert refusal(home).message.startswith(f"{path}: its columns differ from those of train-00000")


@pytest.mark.parametrize("names", [("dog", "cat", "owl"), ("cat", "dog"), None])
def test_shards_with_other_classes(home: Path, names: tuple[str, ...] | None) -> None:
    path = write(home / "data" / "val.parquet", [0], names)
    assert refusal(home).message.startswith(f"{path}: its classes differ from those of train-00000")


def test_no_images_and_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    pq.write_table(pa.table({"path": ["a.png"], "label": [0]}), path)
    assert "no column with images" in refusal(path).message
    pq.write_table(pa.table({"image": [b"x"], "class": [0]}), path)
    error = refusal(path)
    assert "no column 'label'" in error.message
    assert "there are: image, class." in error.remedy


def test_two_kinds_of_labels_are_not_chosen_between(tmp_path: Path) -> None:
    feature = {"names": ["a", "b"], "_type": "ClassLabel"}
    about = {"huggingface": json.dumps({"info": {"features": {"fine_label": feature, "coarse_label": feature}}})}
    table = pa.table({"img": [picture(0)], "fine_label": [0], "coarse_label": [1]})
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "cifar.parquet")
    assert "Rename the one with the classes" in refusal(tmp_path / "cifar.parquet").remedy


@pytest.mark.parametrize("label", [3, 99, -2])
def test_a_label_that_no_class_has(tmp_path: Path, target: Path, label: int) -> None:
    path = write(tmp_path / "all.parquet", [0, label])
    error = refusal(path, target)
    assert error.message == f"{path}, row 2: no class has the label {label}."
    assert error.remedy == "Labels run from 0 to 2."


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "cat/1.png"}, {"bytes": b"", "path": None}])
def test_a_row_without_its_image(tmp_path: Path, target: Path, image: Any) -> None:
    path = write(tmp_path / "all.parquet", [0, 1], images=[{"bytes": picture(0)}, image])
    assert refusal(path, target).message == f"{path}, row 2: no image in it."


def test_what_is_no_image(tmp_path: Path, target: Path) -> None:
    path = write(tmp_path / "all.parquet", [0, 1], images=[{"bytes": picture(0)}, {"bytes": b"<html>"}])
    assert refusal(path, target).message == f"{path}: image 2: not an image in a format that can be read."


@pytest.mark.parametrize("split", ["train", "val"])
def test_unlabelled_images_outside_test(tmp_path: Path, target: Path, split: str) -> None:
    path = write(tmp_path / f"{split}.parquet", [0, -1])
    assert refusal(path, target).message == f"{path}: image 2 is in {split} and has no label."


def test_classes_whose_names_make_the_same_folder(tmp_path: Path, target: Path) -> None:
    path = write(tmp_path / "all.parquet", [0, 1], ["a/b", "a:b"])
    assert "the classes 'a/b' and 'a:b' are one folder" in refusal(path, target).message


@pytest.mark.parametrize("length", [0, 100, 0.5, 0.99])
def test_a_shard_that_ends_early(home: Path, length: float) -> None:
    path = home / "data" / "train-00001-of-00002.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(length if length > 1 else length * len(data))])
    assert refusal(home).message.startswith(f"{path}: not a whole Parquet file")


def test_a_shard_whose_rows_are_damaged(home: Path, target: Path) -> None:
    path = home / "data" / "train-00001-of-00002.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)  # its columns are still known
    path.write_bytes(data)
    assert refusal(home, target).message.startswith(f"{path}: not a whole Parquet file")


# what becomes of it


def test_class_folders_come_out(home: Path, target: Path) -> None:
    unpack(copy_at(home), target)
    catalog = read_folder(target)
    assert catalog.class_names == ANIMALS
    assert files_of(target) == [
        "train/cat/000000.png",
        "train/cat/000001.png",
        "train/dog/000000.png",
        "train/dog/000001.png",
        "train/owl/000000.png",
        "train/owl/000001.png",
        "val/cat/000000.png",
        "val/dog/000000.png",
        "val/owl/000000.png",
    ]
    assert (target / "train" / "cat" / "000001.png").read_bytes() == picture(3), "the bytes are those of the copy"
    assert (target / "val" / "dog" / "000000.png").read_bytes() == picture(0)


def test_unlabelled_test_images_lie_in_test_itself(home: Path, target: Path) -> None:
    write(home / "data" / "test-00000-of-00001.parquet", [-1, -1])
    unpack(copy_at(home), target)
    catalog = read_folder(target)
    assert [catalog.paths[row] for row in catalog.rows_of("test")] == ["test/000000.png", "test/000001.png"]
    assert catalog.labels[catalog.rows_of("test")].tolist() == [-1, -1]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_can_be_decoded_can_be_unpacked(tmp_path: Path, target: Path, kind: str) -> None:
    images = [{"bytes": picture(i, kind)} for i in range(2)]
    unpack(copy_at(write(tmp_path / "all.parquet", [0, 1], images=images)), target)
    catalog = read_folder(target, val_fraction=0)
    assert np.array_equal(decode(catalog.read_bytes(1)), decode(images[1]["bytes"]))


def test_class_names_that_no_folder_can_have(tmp_path: Path, target: Path) -> None:
    names = ["../up", ".hidden", " ", "tench, Tinca tinca", 'a<b>|"c"?*', "line\nbreak"]
    unpack(copy_at(write(tmp_path / "all.parquet", list(range(6)), names)), target)
    assert sorted(path.name for path in (target / "train").iterdir()) == sorted(
        ["-.-up", "-hidden", "-", "tench, Tinca tinca", "a-b---c---", "line-break"]
    )
    assert len(read_folder(target, val_fraction=0).class_names) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "target"]


def test_progress_comes_now_and_then_and_at_the_end(tmp_path: Path, target: Path) -> None:
    images = [{"bytes": picture(0)}] * 501
    reports: list[tuple[int, int]] = []
    copy = copy_at(write(tmp_path / "all.parquet", [i % 3 for i in range(501)], images=images))
    unpack(copy, target, progress=lambda *done: reports.append(done))
    assert reports == [(500, 501), (501, 501)]


# Tiny ImageNet


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    home = tmp_path / "tiny"
    for split, labels in (("train", [2, 0, 1, 0]), ("valid", [1, 2])):
        images = [{"bytes": picture(10 * len(labels) + i, "JPEG")} for i in range(len(labels))]
        write(home / "data" / f"{split}-00000-of-00001.parquet", labels, WNIDS, images=images)
    (home / "words.txt").write_text("n01443537\tgoldfish, Carassius\nn02124075\tcat\nn04067472\treel\n")
    return home


def test_tiny_imagenet_comes_out_in_its_official_layout(tiny: Path, target: Path) -> None:
    unpack(copy_at(tiny), target, tiny_imagenet=True)
    assert files_of(target) == [
        "train/n01443537/images/n01443537_0.JPEG",
        "train/n01443537/images/n01443537_1.JPEG",
        "train/n02124075/images/n02124075_0.JPEG",
        "train/n04067472/images/n04067472_0.JPEG",
        "val/images/val_0.JPEG",
        "val/images/val_1.JPEG",
        "val/val_annotations.txt",
        "wnids.txt",
        "words.txt",
    ]
    catalog = read_tiny_imagenet(target)
    assert catalog.class_names == ("goldfish", "cat", "reel")
    assert catalog.labels.tolist() == [0, 0, 1, 2, 1, 2]
    assert catalog.read_bytes(0) == picture(41, "JPEG")
    assert catalog.read_bytes(5) == picture(21, "JPEG")


def test_without_being_told_a_few_wnids_are_class_folders(tiny: Path, target: Path) -> None:
    unpack(copy_at(tiny), target)
    assert read_folder(target).class_names == WNIDS
    assert not (target / "wnids.txt").exists()


def test_two_hundred_wnids_are_tiny_imagenet(tmp_path: Path, target: Path) -> None:
    wnids = [f"n{number:08d}" for number in range(CLASSES)]
    images = [{"bytes": picture(0, "JPEG")}] * CLASSES
    home = tmp_path / "home"
    for split in ("train", "val", "test"):
        labels = [-1] * 3 if split == "test" else list(range(CLASSES))
        write(home / f"{split}.parquet", labels, wnids, images=images[: len(labels)])
    unpack(copy_at(home), target)
    catalog = read_tiny_imagenet(target)
    assert catalog.class_ids == tuple(wnids)
    assert catalog.class_names == catalog.class_ids, "there is no words.txt beside the shards"
    assert {split: len(catalog.rows_of(split)) for split in ("train", "val", "test")} == {
        "train": CLASSES,
        "val": CLASSES,
        "test": 3,
    }


def test_told_so_but_no_wnids_is_class_folders(home: Path, target: Path) -> None:
    unpack(copy_at(home), target, tiny_imagenet=True)
    assert read_folder(target).class_names == ANIMALS


@pytest.mark.real_data
def test_real_images_go_in_and_come_out(real_data: Path, tmp_path: Path, target: Path) -> None:
    official = read_tiny_imagenet(real_data / "tiny-imagenet-200")
    home = tmp_path / "copy"
    for split in ("train", "val"):
        rows = official.rows_of(split)
        images = [{"bytes": official.read_bytes(row), "path": official.paths[row]} for row in rows]
        labels = official.labels[rows].tolist()
        write(home / "data" / f"{split}-00000-of-00001.parquet", labels, list(official.class_ids), images=images)
    unpack(copy_at(home), target, tiny_imagenet=True)
    back = read_tiny_imagenet(target)
    assert back.class_ids == official.class_ids
    for split in ("train", "val"):
        there, here = official.rows_of(split), back.rows_of(split)
        assert sorted((official.labels[row], official.read_bytes(row)) for row in there) == sorted(
            (back.labels[row], back.read_bytes(row)) for row in here
        )


def test_one_image_named_hundreds_of_times_is_not_written_out(tmp_path: Path, target: Path) -> None:
    large = picture(1, "BMP") + bytes(128 << 10)  # which the file holds once
    path = write(tmp_path / "set.parquet", [0] * 600, images=[{"bytes": large, "path": "x"}] * 600)
    assert path.stat().st_size < 1 << 20
    said = refusal(path, target)
    assert "more images come out of it" in said.message
    assert sum(file.stat().st_size for file in target.rglob("*") if file.is_file()) <= 64 << 20


@pytest.mark.parametrize("names", [5, {"a": "cat"}, {"0": 1, "x": 2}])
def test_metadata_whose_classes_cannot_be_told(tmp_path: Path, names: Any) -> None:
    assert "classes" in refusal(write(tmp_path / "set.parquet", [0], names)).message


def test_metadata_nested_too_deeply_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "set.parquet", ["cat"], None, about={"huggingface": "[" * 100_000})
    assert copy_at(path).classes is None


def test_a_class_whose_name_no_folder_can_have(tmp_path: Path, target: Path) -> None:
    said = refusal(write(tmp_path / "set.parquet", [0], ["x" * 5000]), target)
    assert "image 1, of the class 'xxx" in said.message
