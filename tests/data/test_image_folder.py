"""Class folders: with and without splits, folder and zip, and the refusals."""

from __future__ import annotations

import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.data.catalog import UNLABELLED, Row
from lookalike.data.image_folder import read_folder, with_validation
from lookalike.errors import InputError


def lay(root: Path, *names: str) -> Path:
    """Files of these names; what is in them is nobody's business here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def zipped(root: Path, top: str = "") -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, top + file.relative_to(root).as_posix())
    return path


def animals(root: Path, count: int = 20) -> Path:
    return lay(root, *(f"{animal}/{number:02}.jpg" for animal in ("dog", "cat", "owl") for number in range(count)))


def split_animals(root: Path) -> Path:
    names = ("train/cat/1.jpg", "train/cat/2.jpg", "train/dog/3.png", "val/cat/4.jpg", "val/dog/5.jpg", "test/6.jpg")
    return lay(root, *names)


def test_class_folders_get_a_stratified_split(tmp_path: Path) -> None:
    catalog = read_folder(animals(tmp_path / "pets"), val_fraction=0.2)
    assert catalog.class_names == ("cat", "dog", "owl")
    assert catalog.name == "pets"
    assert Counter(zip(catalog.splits.tolist(), catalog.labels.tolist(), strict=True)) == {
        ("train", 0): 16,
        ("train", 1): 16,
        ("train", 2): 16,
        ("val", 0): 4,
        ("val", 1): 4,
        ("val", 2): 4,
    }
    for path, label in zip(catalog.paths, catalog.labels, strict=True):
        assert path.startswith(catalog.class_names[label])
    assert catalog.read_bytes(0) == catalog.paths[0].encode()


def test_the_split_is_the_same_again_and_another_with_another_seed(tmp_path: Path) -> None:
    root = animals(tmp_path / "pets")
    splits = [read_folder(root, split_seed=seed).splits.tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert len({Counter(one)["val"] for one in splits}) == 1


def test_a_new_class_moves_no_image_of_another(tmp_path: Path) -> None:
    root = animals(tmp_path / "pets")
    before = read_folder(root)
    after = read_folder(lay(root, "ant/1.jpg", "ant/2.jpg"))
    splits = dict(zip(after.ids, after.splits.tolist(), strict=True))
    assert [splits[name] for name in before.ids] == before.splits.tolist()


def test_given_splits_are_kept(tmp_path: Path) -> None:
    catalog = read_folder(split_animals(tmp_path / "pets"), val_fraction=0.5)
    found = {
        name: (split, label) for name, split, label in zip(catalog.ids, catalog.splits, catalog.labels, strict=True)
    }
    assert found == {
        "train/cat/1.jpg": ("train", 0),
        "train/cat/2.jpg": ("train", 0),
        "train/dog/3.png": ("train", 1),
        "val/cat/4.jpg": ("val", 0),
        "val/dog/5.jpg": ("val", 1),
        "test/6.jpg": ("test", UNLABELLED),
    }


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("Train", "Validation"), ("training", "val")])
def test_other_words_for_the_splits(tmp_path: Path, train: str, val: str) -> None:
    root = lay(tmp_path, f"{train}/cat/1.jpg", f"{train}/dog/1.jpg", f"{val}/cat/2.jpg")
    assert read_folder(root).splits.tolist() == ["train", "train", "val"]


def test_train_without_val_is_split(tmp_path: Path) -> None:
    root = lay(tmp_path, *(f"train/{animal}/{n}.jpg" for animal in ("cat", "dog") for n in range(10)), "test/cat/0.jpg")
    assert Counter(read_folder(root).splits.tolist()) == {"train": 18, "val": 2, "test": 1}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    catalog = read_folder(lay(tmp_path, "train/1.jpg", "bus/1.jpg", "test/1.jpg"))
    assert catalog.class_names == ("bus", "test", "train")


def test_images_deeper_in_belong_to_the_class(tmp_path: Path) -> None:
    catalog = read_folder(lay(tmp_path, "cat/2020/1.jpg", "cat/2021/a/1.jpg", "dog/1.jpg"))
    assert catalog.class_names == ("cat", "dog")
    assert catalog.labels.tolist() == [0, 0, 1]


def test_other_files_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    root = lay(tmp_path, "cat/1.JPG", "dog/1.jpeg", "readme.txt", "cat/notes.md", ".git/x.jpg", "cat/._1.jpg")
    assert read_folder(root).ids == ["cat/1.JPG", "dog/1.jpeg"]


@pytest.mark.parametrize("top", ["", "pets/", "my/pets/"])
@pytest.mark.parametrize("make", [animals, split_animals])
def test_a_zip_gives_the_same_catalog(tmp_path: Path, top: str, make: object) -> None:
    root = (animals if make is animals else split_animals)(tmp_path / "pets")
    from_folder, from_zip = read_folder(root), read_folder(zipped(root, top))
    assert from_zip.container == "zip"
    assert (from_zip.name, from_zip.ids) == (from_folder.name, from_folder.ids)
    assert from_zip.splits.tolist() == from_folder.splits.tolist()
    assert from_zip.labels.tolist() == from_folder.labels.tolist()
    assert from_zip.read_bytes(3) == from_folder.read_bytes(3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images in it"),
        (["a.txt"], "no images in it"),
        (["1.jpg", "2.jpg"], "'1.jpg' lies in no class's folder"),
        (["cat/1.jpg", "dog/1.jpg", "3.jpg"], "'3.jpg' lies in no class's folder"),
        (["cat/1.jpg"], "one class only, 'cat'"),
        (["train/cat/1.jpg", "val/cat/1.jpg"], "one class only, 'cat'"),
        (["cat/1.jpg", "dog/1.jpg", "owl/1.heic"], "class 'owl' has no images"),
        (["train/cat/1.jpg", "train/dog/1.jpg", "train/owl/1.txt"], "class 'owl' has no images"),
        (
            ["train/cat/1.jpg", "train/dog/1.jpg", "val/owl/1.jpg"],
            "'val/owl/1.jpg' is of class 'owl', which train/ does",
        ),
        (["train/cat/1.jpg", "train/dog/1.jpg", "more/owl/1.jpg"], "'more' lies beside train/ and is no split"),
        (["train/cat/1.jpg", "train/dog/1.jpg", "train/1.jpg"], "'train/1.jpg' lies in no class's folder"),
        (["train/cat/1.jpg", "val/cat/1.jpg", "valid/cat/1.jpg"], "val, valid: two of these are the same split"),
        (["val/cat/1.jpg", "val/dog/1.jpg"], "no train/ with class folders beside val/"),
    ],
)
@pytest.mark.parametrize("as_zip", [False, True])
def test_what_is_wrong_is_named(tmp_path: Path, names: list[str], message: str, as_zip: bool) -> None:
    root = tmp_path / "pets"
    root.mkdir()
    lay(root, *names)
    path = zipped(root) if as_zip else root
    with pytest.raises(InputError, match=message) as caught:
        read_folder(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("below", ["", "train/"])
def test_an_empty_class_folder_is_refused(tmp_path: Path, as_zip: bool, below: str) -> None:
    root = lay(tmp_path / "pets", f"{below}cat/1.jpg", f"{below}dog/1.jpg")
    (root / below / "owl").mkdir()
    with pytest.raises(InputError, match="class 'owl' has no images"):
        read_folder(zipped(root) if as_zip else root)


def test_a_zip_that_ends_early_and_no_zip_at_all(tmp_path: Path) -> None:
    path = zipped(animals(tmp_path / "pets"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="ends early"):
        read_folder(path)
    path.write_bytes(b"Rar!")
    with pytest.raises(InputError, match="neither a folder nor a zip"):
        read_folder(path)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.floats(0, 0.99), st.integers(0, 5), st.randoms())
def test_a_share_of_each_class_is_taken_whatever_the_order(
    sizes: list[int], fraction: float, seed: int, shuffler: random.Random
) -> None:
    rows = [Row(f"{label}/{n}.jpg", label, "train") for label, size in enumerate(sizes) for n in range(size)]
    after = with_validation(rows, fraction, seed)
    assert [row.path for row in after] == [row.path for row in rows]
    for label, size in enumerate(sizes):
        taken = sum(row.split == "val" for row in after if row.label == label)
        assert taken == (0 if fraction == 0 or size == 1 else min(max(round(fraction * size), 1), size - 1))
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert set(with_validation(shuffled, fraction, seed)) == set(after)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="val_fraction is"):
        with_validation([Row("a.jpg", 0, "train")], fraction, 0)
