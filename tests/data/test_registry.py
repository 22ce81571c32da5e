"""`read`: what a person has is recognised by looking at it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from lookalike.data import synthetic
from lookalike.data.registry import BUILTIN, DATASETS, load_dataset
from lookalike.errors import InputError
from small_sets import class_folders, hugging_face, tiny_imagenet, zip_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_DATA", str(tmp_path / "sets"))
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sets"


def test_a_folder_a_zip_and_a_name_give_the_same_tiny_imagenet(tmp_path: Path, home: Path) -> None:
    folder = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    path = zip_of(folder, tmp_path / "tiny-imagenet-200.zip", "tiny-imagenet-200/")
    from_folder, from_zip = load_dataset(folder), load_dataset(str(path))
    tiny_imagenet(home / "tiny-imagenet")
    from_name = load_dataset("tiny-imagenet")
    assert from_folder.name == from_zip.name == from_name.name == "tiny-imagenet"
    assert from_folder.ids == from_zip.ids == from_name.ids
    assert from_name.root == home / "tiny-imagenet"


def test_class_folders_are_split_as_asked(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pets", images=10)
    catalog = load_dataset(folder, val_fraction=0.3, split_seed=1)
    assert catalog.name == "pets"
    assert len(catalog.rows_of("val")) == 9
    assert load_dataset(folder, val_fraction=0.3, split_seed=2).splits.tolist() != catalog.splits.tolist()
    assert load_dataset(zip_of(folder, tmp_path / "pets.zip"), val_fraction=0.3, split_seed=1).ids == catalog.ids


@pytest.mark.parametrize("name", ["pets.csv", "pets.TSV", "pets.parquet"])
def test_tables_are_known_by_their_ending(name: str, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pets")
    whole = load_dataset(folder)
    path = tmp_path / "pets" / name
    if name.endswith("parquet"):
        whole.to_parquet(path)
    else:
        between = "," if name.endswith("csv") else "\t"
        lines = [f"{image}{between}{image.split('/')[0]}" for image in whole.paths]
        path.write_text("\n".join([f"path{between}label", *lines]))
    catalog = load_dataset(path, val_fraction=0.25)
    assert sorted(catalog.paths) == sorted(whole.paths)
    assert catalog.class_names == ("cat", "dog", "owl")
    assert len(catalog.rows_of("val")) == 3


def test_a_name_stands_before_a_path(tmp_path: Path, home: Path) -> None:
    class_folders(tmp_path / "pets")
    class_folders(home / "pets", images=2)
    assert load_dataset("pets").root == home / "pets"
    assert len(load_dataset("./pets")) == 12
    assert len(load_dataset(Path("pets"))) == 12, "a Path is a path"


def test_builtin_is_a_name(tmp_path: Path) -> None:
    class_folders(tmp_path / "builtin")
    assert load_dataset("./builtin").class_names == ("cat", "dog", "owl")


def test_builtin_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(synthetic.catalog, size=16, train_per_class=1, val_per_class=1, test_per_class=0, workers=1)
    monkeypatch.setattr(synthetic, "catalog", few)  # all of them take a while
    catalog = load_dataset(BUILTIN)
    assert catalog.name == BUILTIN
    assert catalog.root.parent == tmp_path / "cache"
    assert len(catalog) == 48


def test_a_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_dataset("~/pets")) == 12


@pytest.mark.parametrize("shards", ["copy", "copy/data", "copy/train", "copy/default/train"])
def test_a_folder_of_parquet_files_is_to_be_imported(shards: str, tmp_path: Path) -> None:
    hugging_face(tmp_path / shards)
    inside = (Path(shards).relative_to("copy") / "(train|valid)-00000-of-00001.parquet").as_posix()
    with pytest.raises(InputError, match=rf"a folder with Parquet files, such as {inside}\.") as caught:
        load_dataset(tmp_path / "copy")
    assert caught.value.remedy.startswith(f"Import it (lookalike data import {tmp_path / 'copy'} --name NAME)")


def test_one_parquet_file_with_images_is_to_be_imported(tmp_path: Path) -> None:
    copy = hugging_face(tmp_path / "copy")
    with pytest.raises(InputError, match="the images are inside this Parquet file"):
        load_dataset(copy / "train-00000-of-00001.parquet")


def test_a_known_set_that_is_not_here_can_be_got() -> None:
    with pytest.raises(InputError, match="tiny-imagenet is not on this machine") as caught:
        load_dataset("tiny-imagenet")
    assert "lookalike data download tiny-imagenet" in caught.value.remedy


@pytest.mark.parametrize(("source", "near"), [("tinyimagenet", "tiny-imagenet"), ("buildin", "builtin")])
def test_a_misspelt_name_is_answered_with_the_nearest(source: str, near: str) -> None:
    with pytest.raises(InputError, match=f"'{source}': no data set of this name.* Did you mean '{near}'") as caught:
        load_dataset(source)
    assert all(name in caught.value.remedy for name in (BUILTIN, *DATASETS))


@pytest.mark.parametrize("source", ["..", "", "nothing/here", "/nothing/here"])
def test_no_name_leads_out_of_the_folder_of_all_sets(source: str, home: Path) -> None:
    home.mkdir()
    with pytest.raises(InputError):
        load_dataset(source)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match="neither a folder nor a zip"):
        load_dataset(tmp_path / "photo.jpg")
