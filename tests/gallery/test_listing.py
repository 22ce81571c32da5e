"""What can be added: files, folders, patterns, lists, Parquet with pictures, data sets."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingesting import about, encoded, fill, numbers, rows_of

from lookalike.data.catalog import Catalog
from lookalike.data.registry import load_dataset
from lookalike.errors import InputError
from lookalike.gallery.ingest import ingest
from lookalike.gallery.sources.base import SourceImage
from lookalike.gallery.sources.resolve import resolve_source, resolve_sources
from lookalike.gallery.store.base import FailedFile
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.models.pretrained import load
from lookalike.models.runtime import TorchRuntime
from small_gallery import model_folder
from small_sets import WNIDS, class_folders, hugging_face, zip_of


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> TorchRuntime:
    return TorchRuntime(load(model_folder(tmp_path_factory.mktemp("runs") / "model")))


@pytest.fixture
def store(embedder: TorchRuntime, tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore.create(tmp_path / "g", about(embedder)) as made:
        yield made


def names(source: str | Path, root: Path) -> list[str]:
    listing = resolve_source(source)
    found = list(listing.items())
    assert listing.count() == len(found)
    return [Path(one.path).relative_to(root).as_posix() for one in found]


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = ("b/.hidden.png", ".git/4.png", "notes.txt", "__MACOSX/5.png")
    for name in ("b/2.JPG", "b/1.png", "a/x/3.webp", "c.gif", *left_out):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    every = ["a/x/3.webp", "b/1.png", "b/2.JPG", "c.gif"]
    assert names(tmp_path, tmp_path) == every
    assert names(tmp_path / "c.gif", tmp_path) == ["c.gif"]
    assert names(tmp_path / "notes.txt", tmp_path) == ["notes.txt"]  # asked for by name: it will be said what it is
    assert names(str(tmp_path / "b" / "*"), tmp_path) == ["b/1.png", "b/2.JPG"]
    assert names(str(tmp_path / "**" / "*"), tmp_path) == every
    assert names(str(tmp_path / "[ab]"), tmp_path) == every[:3]
    monkeypatch.chdir(tmp_path / "b")
    assert names("../b/1.png", tmp_path) == names(".", tmp_path)[:1] == ["b/1.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/b", tmp_path) == ["b/1.png", "b/2.JPG"]


def test_a_folder_is_listed_once_however_it_is_linked(tmp_path: Path) -> None:
    fill(tmp_path / "photos" / "b", 2)
    (tmp_path / "photos" / "a").symlink_to(tmp_path / "photos" / "b")
    (tmp_path / "photos" / "b" / "up").symlink_to(tmp_path / "photos")
    fill(tmp_path / "elsewhere", 1)
    (tmp_path / "photos" / "c").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "photos", tmp_path / "photos") == ["b/0000.png", "b/0001.png", "c/0000.png"]


def test_a_name_that_looks_like_a_pattern_is_a_name_first(tmp_path: Path) -> None:
    fill(tmp_path / "[ab]", 1)
    assert names(tmp_path / "[ab]", tmp_path) == ["[ab]/0000.png"]


def test_a_deep_folder_does_not_end_the_walk(tmp_path: Path) -> None:
    folders = [tmp_path]
    for _ in range(1200):  # more than Python calls itself
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    (folders[-1] / "1.png").write_bytes(b"")
    try:
        assert len(list(resolve_source(tmp_path).items())) == 1
    finally:
        (folders[-1] / "1.png").unlink()
        for folder in reversed(folders[1:]):  # pytest itself cannot remove it
            folder.rmdir()


TABLE = """path,label,year,note
a/1.png,cat,2012,"one, two"
,dog,2013,
missing.png,dog,2014,x
a/2.png,,,
a/3.png,dog,2015,x,too much
a/4.png,emu,2016,it's fine
a/1.png,dog,1999,again
"""


def test_a_list_gives_labels_and_metadata_and_its_bad_rows_are_named(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    fill(tmp_path / "a", 5)
    for i in range(1, 5):
        (tmp_path / "a" / f"000{i}.png").rename(tmp_path / "a" / f"{i}.png")
    table = tmp_path / "list.csv"
    table.write_text(TABLE, encoding="utf-8-sig")
    assert numbers(ingest(store, embedder, table)) == {"added": 3, "skipped": 1, "failed": 3}
    rows = {Path(path).name: (row.label, dict(row.metadata)) for path, row in rows_of(store).items()}
    assert rows == {
        "1.png": ("cat", {"year": "2012", "note": "one, two"}),
        "2.png": (None, {}),
        "4.png": ("emu", {"year": "2016", "note": "it's fine"}),
    }
    assert {one.path: one.reason for one in store.rejected()} == {
        f"{table}, row 2": "no path",
        f"{table}, row 5": "more fields than columns",
        str(tmp_path / "missing.png"): "cannot be read (No such file or directory)",
    }
    table.write_text(TABLE.replace("cat,2012", "lynx,2012").replace("emu,2016", "emu,2017"))
    assert numbers(ingest(store, embedder, table)) == {"skipped": 4, "failed": 3, "relabelled": 2}
    rows = {Path(path).name: (row.label, dict(row.metadata)) for path, row in rows_of(store).items()}
    assert rows["1.png"] == ("lynx", {"year": "2012", "note": "one, two"})
    assert rows["4.png"] == ("emu", {"year": "2017", "note": "it's fine"})


def test_a_list_of_paths_alone_leaves_what_is_known(store: SqliteStore, embedder: TorchRuntime, tmp_path: Path) -> None:
    fill(tmp_path / "a", 2)
    ingest(store, embedder, tmp_path / "a", label="mine")
    store.update([1, 2], None, {"stars": 5})
    (tmp_path / "list.tsv").write_text("path\na/0000.png\na/0001.png\n")
    assert numbers(ingest(store, embedder, tmp_path / "list.tsv")) == {"skipped": 2}
    assert [(row.label, dict(row.metadata)) for row in store.rows()] == [("mine", {"stars": 5})] * 2


def test_a_parquet_list_keeps_the_kind_of_its_values(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    fill(tmp_path / "a", 2)
    table = pa.table(
        {
            "path": ["a/0000.png", str(tmp_path / "a" / "0001.png")],
            "label": [3, None],
            "year": [2012, None],
            "share": [0.5, float("nan")],
            "sharp": [True, False],
            "day": [datetime.date(2020, 1, 2), None],
            "vector": [[1.0, 2.0], None],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    assert numbers(ingest(store, embedder, tmp_path / "list.parquet")) == {"added": 2}
    assert [(row.label, dict(row.metadata)) for row in store.rows()] == [
        ("3", {"year": 2012, "share": 0.5, "sharp": True, "day": "2020-01-02"}),
        (None, {"sharp": False}),
    ]


def test_pictures_inside_parquet_shards(store: SqliteStore, embedder: TorchRuntime, tmp_path: Path) -> None:
    copy = hugging_face(tmp_path / "copy")
    assert numbers(ingest(store, embedder, copy)) == {"added": 15}
    assert {row.label for row in store.rows()} == set(WNIDS)
    first = copy / "train-00000-of-00001.parquet"
    assert store.by_path([f"{first}#0"])[f"{first}#0"].label == WNIDS[0]
    assert numbers(ingest(store, embedder, [copy, first])) == {"skipped": 24}


def test_parquet_with_pictures_needs_neither_labels_nor_whole_rows(
    store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    table = pa.table({"jpg": [encoded(1), None, b"no picture", encoded(2)], "width": [40, 41, 42, 43]})
    file = tmp_path / "shard.parquet"
    pq.write_table(table, file)
    assert numbers(ingest(store, embedder, file)) == {"added": 2, "failed": 2}
    assert [(row.path, dict(row.metadata)) for row in store.rows()] == [
        (f"{file}#0", {"width": 40}), (f"{file}#3", {"width": 43}),
    ]  # fmt: skip
    assert [one.path for one in store.rejected()] == [f"{file}#1", f"{file}#2"]
    assert numbers(ingest(store, embedder, file)) == {"skipped": 2, "failed": 2, "failed_before": 2}


def test_a_catalog_of_a_folder_or_zip(store: SqliteStore, embedder: TorchRuntime, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pets")
    catalog = load_dataset(folder)
    assert numbers(ingest(store, embedder, catalog)) == {"added": 12}
    row = store.by_path([str(folder / "dog" / "2.jpg")])[str(folder / "dog" / "2.jpg")]
    assert row.label == "dog"
    assert row.metadata["split"] in ("train", "val")
    catalog.to_parquet(tmp_path / "pets.parquet")
    assert numbers(ingest(store, embedder, tmp_path / "pets.parquet")) == {"skipped": 12}
    inside = load_dataset(zip_of(folder, tmp_path / "pets.zip"))
    assert numbers(ingest(store, embedder, inside)) == {"added": 12, "reused": 12}
    assert numbers(ingest(store, embedder, inside)) == {"skipped": 12}
    assert {Path(path).parent.name for path in rows_of(store)} == {"cat", "dog", "owl"}


@pytest.mark.parametrize("name", ["pets.zip", "PETS.ZIP", "pets.tar.gz"])
def test_an_archive_is_no_image_and_it_is_said_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / "my files").mkdir()
    archive = zip_of(class_folders(tmp_path / "pets"), tmp_path / "my files" / name)
    for sources in ([archive], [tmp_path / "pets", str(archive)]):
        with pytest.raises(InputError, match="archive") as error:
            resolve_sources(sources)
        assert str(archive) in error.value.message
        assert "Unpack it" in error.value.remedy
        assert (f"lookalike data import '{archive}' --name NAME" in error.value.remedy) == name.lower().endswith(".zip")


def test_an_archive_among_all_that_a_folder_holds_is_passed_over(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pets")
    zip_of(folder / "cat", folder / "cats.zip")
    for labelled in (True, False):
        listings = resolve_sources([str(path) for path in folder.iterdir()], folder_labels=labelled)
        assert {Path(one.path).suffix for listing in listings for one in listing.items()} == {".jpg"}
        assert sum((listing.passed_over for listing in listings), Counter()) == {".zip": 1}


def test_a_catalogs_file_that_is_gone_is_rejected(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pets")
    catalog = load_dataset(folder)
    zipped = load_dataset(zip_of(folder, tmp_path / "pets.zip"))
    (folder / "cat" / "0.jpg").unlink()
    found = list(resolve_source(catalog).items())
    assert [type(one) for one in found] == [FailedFile, *[SourceImage] * 11]
    renamed = zipped.table.set_column(1, "path", pa.array(["nowhere.jpg", *zipped.paths[1:]]))
    assert isinstance(next(resolve_source(replace(zipped, table=renamed)).items()), FailedFile)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.csv", b"file,label\n1.png,cat\n", "no column 'path'"),
        ("list.csv", b"path,label\n\xff\xfe,cat\n", "cannot be read as a table"),
        ("list.csv", b"", "no column 'path'"),
        ("list.parquet", b"PAR1 no", "not a whole Parquet file"),
    ],
)
def test_what_is_no_list_is_refused(
    name: str, content: bytes, words: str, store: SqliteStore, embedder: TorchRuntime, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        ingest(store, embedder, tmp_path / name)


def test_parquet_without_paths_or_pictures_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": ["cat"]}), tmp_path / "list.parquet")
    for source in (tmp_path / "list.parquet", tmp_path):
        with pytest.raises(InputError, match="'path'"):
            resolve_source(source)


def test_the_name_of_a_data_set_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    catalog = load_dataset(class_folders(tmp_path / "pets"))

    def reading(name: str) -> Catalog:
        found.append(name)
        return catalog

    monkeypatch.setattr("lookalike.gallery.sources.resolve.load_dataset", reading)
    assert len(list(resolve_source("builtin").items())) == 12
    assert found == ["builtin"]
