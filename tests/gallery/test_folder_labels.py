"""What folders, lists and data sets say that an image in a gallery is."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingesting import about, encoded, fill, numbers

from lookalike.data.registry import load_dataset
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.ingest import ingest
from lookalike.gallery.sources.folder_labels import FolderLabels, children_of, class_folder, tops_of
from lookalike.gallery.store.base import Store
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.models.pretrained import load
from lookalike.models.runtime import TorchRuntime
from small_gallery import model_folder
from small_sets import WNIDS, WORDS, tiny_imagenet


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> TorchRuntime:
    return TorchRuntime(load(model_folder(tmp_path_factory.mktemp("runs") / "model")))


@pytest.fixture
def store(embedder: TorchRuntime, tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore.create(tmp_path / "g", about(embedder)) as made:
        yield made


def lay(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def labels_in(store: Store, root: Path) -> dict[str, str | None]:
    return {Path(row.path).relative_to(root).as_posix(): row.label for row in store.rows()}


LAYOUTS = [
    ({"cat/1.png": "cat", "cat/kittens/2.png": "cat", "3.png": None}, 0),
    ({"car/1.png": "car", "plane/1.png": "plane", "train/1.png": "train"}, 0),
    ({"car/1.png": "car", "test/1.png": "test", "images/1.png": "images"}, 0),
    ({"train/1.png": "train", "test/1.png": "test"}, 0),
    ({"car/2020/1.png": "car", "train/2020/1.png": "train", "test/2020/1.png": "test"}, 1),
    ({"train/cat/1.png": "cat", "val/cat/2.png": "cat", "test/3.png": None}, 0),
    ({"Training/cat/a/1.png": "cat", "valid/dog/2.png": "dog"}, 0),
    ({"train/cat/1.png": "cat", "train/images/1.png": "images", "val/images/2.png": "images"}, 0),
    ({"train/n1/images/1.png": "n1", "val/images/2.png": None, "test/images/3.png": None}, 0),
    ({"images/1.png": None, "images/2.png": None}, 0),
    ({"images/001.Auk/1.png": "001.Auk", "images/002.Owl/2.png": "002.Owl"}, 0),
    ({"cars_train/1.jpg": None, "cars_test/2.jpg": None}, 0),
    ({"data/train/cat/1.png": "cat", "data/test/dog/2.png": "dog"}, 0),
    ({"birds/images/auk/1.png": "auk", "birds/images/owl/2.png": "owl"}, 0),
    ({"cat/images/1.png": "cat", "cat/2.png": "cat"}, 0),
]


@pytest.mark.parametrize(("expected", "words"), LAYOUTS)
def test_the_folder_that_is_the_class(expected: dict[str, str | None], words: int, tmp_path: Path) -> None:
    root = lay(tmp_path / "photos", *expected, "notes/1.txt", ".git/train/cat/1.png")
    labels = FolderLabels(str(root))
    assert {name: labels.of(f"{root}/{name}")[0] for name in expected} == expected
    notes: list[str] = []
    tops = tops_of(children_of(expected), notes)
    assert {name: class_folder(name, tops) for name in expected} == expected
    assert len(notes) == words
    assert (labels.notes == notes) != ("cars_train/1.jpg" in expected)  # a known set without its lists is worth a note


def test_a_known_set_is_labelled_by_its_lists(store: SqliteStore, embedder: TorchRuntime, tmp_path: Path) -> None:
    home = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    report = ingest(store, embedder, home)
    assert report.added == 9 + 6 + 4
    assert (report.passed_over, report.notes) == ({}, [])
    catalog = load_dataset(home)
    expected = {
        path: (None if label < 0 else catalog.class_names[label], split)
        for path, label, split in zip(catalog.paths, catalog.labels, catalog.splits, strict=True)
    }
    rows = {Path(row.path).relative_to(home).as_posix(): row for row in store.rows()}
    assert {name: (row.label, row.metadata["split"]) for name, row in rows.items()} == expected
    assert rows["val/images/val_1.JPEG"].label == WORDS[1]


@pytest.mark.parametrize("part", ["..", "val", "val/images", "train", f"train/{WNIDS[0]}/images"])
def test_so_are_a_part_of_it_and_the_folder_above(part: str, tmp_path: Path) -> None:
    home = tiny_imagenet(tmp_path / "sets" / "tiny-imagenet-200")
    labels = FolderLabels(str((home / part).resolve()))
    assert labels.of(str(home / "val/images/val_2.JPEG")) == (WORDS[2], "val")
    assert labels.of(str(home / f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG")) == (WORDS[0], "train")
    assert labels.of(str(home / "test/images/test_0.JPEG")) == (None, "test")


def test_a_known_set_without_its_lists_invents_no_label(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    home = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (home / "val" / "val_annotations.txt").unlink()
    report = ingest(store, embedder, home)
    assert len(report.notes) == 1
    assert "val_annotations.txt" in report.notes[0]
    labels = labels_in(store, home)
    assert labels["val/images/val_0.JPEG"] is None
    assert labels[f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"] == WNIDS[0]
    assert set(labels.values()) == {None, *WNIDS}


@pytest.mark.parametrize(
    ("lists", "images"),
    [
        (
            {"images.txt": "1 001.Auk/a.jpg\n2 002.Owl/b.jpg\n", "image_class_labels.txt": "1 1\n2 2\n",
             "classes.txt": "1 001.Auk\n2 002.Owl\n", "train_test_split.txt": "1 1\n2 0\n"},
            {"images/001.Auk/a.jpg": "Auk", "images/002.Owl/b.jpg": "Owl"},
        ),
        (
            {"Ebay_train.txt": "image_id class_id super_class_id path\n1 1 1 chair_final/a.JPG\n",
             "Ebay_test.txt": "image_id class_id super_class_id path\n2 2 1 chair_final/b.JPG\n"},
            {"chair_final/a.JPG": "chair 1", "chair_final/b.JPG": "chair 2"},
        ),
    ],
)  # fmt: skip
def test_cub_and_stanford_products(lists: dict[str, str], images: dict[str, str], tmp_path: Path) -> None:
    root = lay(tmp_path / "set", *images)
    for name, text in lists.items():
        (root / name).write_text(text)
    labels = FolderLabels(str(root))
    assert {name: labels.of(f"{root}/{name}")[0] for name in images} == images


def test_a_pattern_and_all_entries_of_a_folder_label_like_the_folder(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    fill(photos / "cat", 1)
    fill(photos / "dog", 1, first=1)
    fill(photos, 1, first=2)
    expected = {"cat/0000.png": "cat", "dog/0001.png": "dog", "0002.png": None}
    for sources in (
        [photos],
        [photos / "**" / "*.png"],
        [photos / "*"],
        sorted(photos.iterdir()),
        [f"{path}/" if path.is_dir() else str(path) for path in photos.iterdir()],
    ):
        ingest(store, embedder, sources)
        assert labels_in(store, photos) == expected
        store.remove([row.id for row in store.rows()])
    ingest(store, embedder, [photos / "cat", photos / "dog"])  # not all of it: these may be anybody's folders
    assert set(labels_in(store, photos).values()) == {None}
    ingest(store, embedder, [photos / "**" / "*.png"], folder_labels=False)
    assert set(labels_in(store, photos).values()) == {None}


def test_folders_fill_in_labels_that_are_missing_and_no_others(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos" / "cat", 3).parent
    ingest(store, embedder, sorted((photos / "cat").iterdir()))
    assert set(labels_in(store, photos).values()) == {None}
    store.update([1], "mine")
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 3, "relabelled": 2}
    assert sorted(labels_in(store, photos).values(), key=str) == ["cat", "cat", "mine"]
    assert numbers(ingest(store, embedder, photos)) == {"skipped": 3}


@pytest.mark.parametrize("list_first", [True, False])
def test_a_list_wins_over_folders_whatever_the_order(
    list_first: bool, store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    photos = fill(tmp_path / "photos" / "cat", 3).parent
    for table in (tmp_path / "list.csv", photos / "list.csv"):
        inside = "cat" if table.parent == photos else "photos/cat"
        table.write_text(f"path,label,owner\n{inside}/0000.png,LYNX,ann\n{inside}/0001.png,,bo\n")
        sources = [table, photos] if list_first else [photos, table]
        report = ingest(store, embedder, sources)
        assert (report.added, len(report.notes)) == (3, 0)
        found = {Path(row.path).name: (row.label, dict(row.metadata)) for row in store.rows()}
        assert found == {
            "0000.png": ("LYNX", {"owner": "ann"}), "0001.png": ("cat", {"owner": "bo"}), "0002.png": ("cat", {}),
        }  # fmt: skip
        store.remove([row.id for row in store.rows()])
    (note,) = ingest(store, embedder, photos).notes  # a list in the folder that was not given
    assert note.startswith(f"{photos / 'list.csv'} looks like a list")


def test_names_that_look_the_same_are_one_label(embedder: TorchRuntime, tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    photos = tmp_path / "photos"
    for seed, name in enumerate((composed, decomposed)):
        (photos / name).mkdir(parents=True)
        (photos / name / "1.png").write_bytes(encoded(seed))
    with SqliteStore.create(tmp_path / "g", about(embedder)) as store:
        ingest(store, embedder, photos)
        assert {row.label for row in store.rows()} == {composed}
        assert [store.count({"label": name}) for name in (composed, decomposed)] == [2, 2]
        with Gallery(store, tmp_path / "g") as gallery:
            gallery.update([1], label=unicodedata.normalize("NFD", "thé"))
            assert store.count({"label": unicodedata.normalize("NFC", "thé")}) == 1
