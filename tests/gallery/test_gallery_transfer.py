"""A gallery as a file: all of it, and back; what is damaged or of another kind is named and leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.errors import InputError
from lookalike.gallery import export
from lookalike.gallery.export import Exported, create_filled, export_rows
from lookalike.gallery.store.base import GalleryInfo, Store
from lookalike.gallery.store.location import parse_location
from lookalike.gallery.store.sqlite import SqliteStore
from small_gallery import rows

DIM = 24
ABOUT = GalleryInfo("a" * 64, DIM, "/runs/r18/model", 64, 0.625)
COUNT = 50

lance = pytest.mark.skipif(importlib.util.find_spec("lance") is None, reason="needs the package pylance")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with SqliteStore.create(tmp_path_factory.mktemp("kept") / "g", ABOUT) as made:
        made.add(rows(COUNT, DIM))
        made.remove([7])
        yield made


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "READ_BATCH", 8)


def contents(store: Store) -> list[dict[str, object]]:
    """All that is kept of each row, but its id."""
    kept = list(store.rows())
    vectors = store.vectors([row.id for row in kept])
    trees = []
    for row, vector in zip(kept, vectors, strict=True):
        tree = asdict(row) | {"vector": vector.tolist(), "thumbnail": store.thumbnail(row.id) or b""}
        tree["dhash"] %= 1 << 64
        del tree["id"]
        trees.append(tree)
    return trees


@pytest.mark.parametrize("name", ["all.parquet", pytest.param("all.lance", marks=lance)])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_there_and_back_nothing_is_lost(name: str, precision: export.Precision, store: Store, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    written = export_rows(store, tmp_path / name, precision=precision, progress=lambda *step: steps.append(step))
    assert written == COUNT - 1
    assert steps[-1] == (COUNT - 1, COUNT - 1)
    assert len(steps) == 7
    create_filled(tmp_path / "new", Exported(tmp_path / name))
    with SqliteStore.open(tmp_path / "new") as again:
        assert again.about == ABOUT
        assert contents(again) == contents(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "new"]


def test_any_tool_can_read_it(store: Store, tmp_path: Path) -> None:
    export_rows(store, tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float16(), DIM)
    ids = table["id"].to_pylist()
    assert ids == [row.id for row in store.rows()]
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
    assert np.array_equal(vectors.astype(np.float32), store.vectors(ids))
    tree = json.loads(table.schema.metadata[export.KEY])
    assert tree == {"format": 1, **asdict(ABOUT)}
    first = store.get(ids[:1])[0]
    assert first is not None
    assert json.loads(table["metadata"][0].as_py()) == dict(first.metadata)


def test_a_folder_of_parts_is_read_in_order(store: Store, tmp_path: Path) -> None:
    export_rows(store, tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    (tmp_path / "parts").mkdir()
    for number, low in enumerate(range(0, COUNT, 20)):
        pq.write_table(table.slice(low, 20), tmp_path / "parts" / f"{number}.parquet")
    source = Exported(tmp_path / "parts")
    assert source.count == COUNT - 1
    create_filled(tmp_path / "new", source)
    with SqliteStore.open(tmp_path / "new") as again:
        assert contents(again) == contents(store)
    other = table.replace_schema_metadata(
        {export.KEY: json.dumps({"format": 1, **asdict(ABOUT), "dim": DIM, "fingerprint": "b" * 64})}
    )
    pq.write_table(other, tmp_path / "parts" / "3.parquet")
    with pytest.raises(InputError, match=r"3\.parquet.*0\.parquet"):
        Exported(tmp_path / "parts")


def test_an_empty_gallery_is_exported(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", ABOUT) as store:
        assert export_rows(store, tmp_path / "none.parquet") == 0
    create_filled(tmp_path / "new", Exported(tmp_path / "none.parquet"))
    with SqliteStore.open(tmp_path / "new") as again:
        assert len(again) == 0
        assert again.about == ABOUT


def test_what_is_changed_meanwhile_is_exported_as_it_was(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", ABOUT) as store:
        given = rows(COUNT, DIM)
        store.add(given)
        before = contents(store)

        def change(done: int, total: int) -> None:
            store.remove([done + 5])
            store.add([replace(row, label="new") for row in given[::3]])  # under new ids
            store.update([done + 9], "changed")
            assert total == COUNT

        assert export_rows(store, tmp_path / "all.parquet", progress=change) == COUNT
        create_filled(tmp_path / "copy", Exported(tmp_path / "all.parquet"))
        with SqliteStore.open(tmp_path / "copy") as copy:
            assert contents(copy) == before
        assert contents(store) != before


def test_nothing_is_overwritten_and_no_half_file_stays(store: Store, tmp_path: Path) -> None:
    (tmp_path / "there.parquet").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        export_rows(store, tmp_path / "there.parquet")
    with pytest.raises(InputError, match="no such folder"):
        export_rows(store, tmp_path / "no" / "all.parquet")
    with pytest.raises(InputError, match=r"'\.csv'"):
        export_rows(store, tmp_path / "all.csv")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_rows(store, tmp_path / "all.parquet", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["there.parquet"]
    assert (tmp_path / "there.parquet").read_text() == "mine"


@pytest.mark.skipif(importlib.util.find_spec("lance") is not None, reason="pylance is installed")
def test_lance_wants_its_package(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pylance is not installed\. Run .pip install pylance"):
        export_rows(store, tmp_path / "all.lance")
    (tmp_path / "other.lance").mkdir()
    with pytest.raises(InputError, match="pylance is not installed"):
        Exported(tmp_path / "other.lance")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.9, 0.999])
def test_a_file_cut_short_is_named_and_makes_no_gallery(share: float, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    export_rows(store, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"all\.parquet"):
        create_filled(tmp_path / "new", Exported(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_damaged_inside_makes_no_gallery(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    export_rows(store, path)
    data = bytearray(path.read_bytes())
    data[20:400] = bytes(380)  # pages of the first columns; the footer is whole
    path.write_bytes(data)
    source = Exported(path)
    with pytest.raises(InputError, match=r"all\.parquet"):
        create_filled(tmp_path / "new", source)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_ours_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    with pytest.raises(InputError, match="no such file"):
        Exported(path)
    with pytest.raises(InputError, match="no Parquet files in this folder"):
        Exported(tmp_path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(InputError, match="not the export of a gallery"):
        Exported(path)
    path.unlink()
    export_rows(store, path)
    table = pq.read_table(path)
    for without in ("vector", "digest", "look"):
        pq.write_table(table.drop_columns([without]), path)
        with pytest.raises(InputError, match=f"'{without}'"):
            Exported(path)
    newer = {export.KEY: json.dumps({"format": 2, **asdict(ABOUT)})}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(InputError, match="format 2"):
        Exported(path)


def test_a_gallery_that_is_there_is_not_filled_again(store: Store, tmp_path: Path) -> None:
    export_rows(store, tmp_path / "all.parquet")
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match="already exists"):
        create_filled(tmp_path / "new", Exported(tmp_path / "all.parquet"))
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("postgresql://ann@db.example/pictures#photos", "postgresql://ann@db.example/pictures#photos"),
        ("postgres://ann:s3cret@db/pictures#photos", "postgres://ann@db/pictures#photos"),
        ("postgresql://db/p?user=ann&password=s3cret&port=1#a", "postgresql://db/p?user=ann&password=***&port=1#a"),
        ("postgresql://ann:a/b?c@db/p#a", "postgresql://ann@db/p#a"),
        ("postgresql://db/p?password=a@b&user=ann#a", "postgresql://db/p?password=***&user=ann#a"),
        ("postgresql://db/p?pass%77ord=s3cret#a", "postgresql://db/p?pass%77ord=***#a"),
        ("postgresql:///pictures?host=/run/pg#photos", "postgresql:///pictures?host=/run/pg#photos"),
    ],
)
def test_a_database_is_shown_without_its_password(target: str, shown: str) -> None:
    place = parse_location(target)
    assert str(place) == shown
    assert "s3cret" not in repr(place)
    assert f"{place.url}#{place.name}" == target  # type: ignore[union-attr]


def test_a_folder_is_a_folder_and_a_database_needs_a_name() -> None:
    assert parse_location("photos#1.gallery") == Path("photos#1.gallery")
    assert parse_location("~/g") == Path.home() / "g"
    for target in ("postgresql://ann:s3cret@db/pictures", "postgresql://ann:s3cret@db/pictures#"):
        with pytest.raises(InputError, match="no gallery is named") as caught:
            parse_location(target)
        assert "s3cret" not in str(caught.value)
        assert "postgresql://ann@db/pictures#NAME" in caught.value.remedy


def forged(file: Path, /, **columns: Any) -> Path:
    """An export with other values in some of its columns, or other metadata."""
    table = pq.read_table(file)
    about = columns.pop("about", None)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = pa.field(name, table.schema.field(name).type)
        table = table.set_column(place, field, pa.array(values, field.type))
    if about is not None:
        table = table.replace_schema_metadata({export.KEY: about})
    pq.write_table(table, file)
    return file


N = COUNT - 1
UNIT = [1.0] + [0.0] * (DIM - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"path": [None] * N},
        {"path": ["a" * ((1 << 20) + 1)] * N},
        {"metadata": ["[1]"] * N},
        {"metadata": ['{"a":' * 50_000] * N},
        {"metadata": ['{"a": NaN}'] * N},
        {"metadata": [" " * (1 << 20) + "{}"] * N},
        {"thumbnail": [None] * N},
        {"thumbnail": [bytes((1 << 20) + 1)] * N},
        {"vector": np.array([[np.nan] * DIM] * N, np.float16).tolist()},
        {"vector": np.array([[2.0] * DIM] * N, np.float16).tolist()},
        {"vector": [None, *np.array([UNIT] * (N - 1), np.float16).tolist()]},
        {"about": "[" * 100_000},
        {"about": "[1]"},
        {"about": json.dumps({"format": 1, **asdict(ABOUT), "dim": "24"})},
        {"about": json.dumps({"format": 1, **asdict(ABOUT), "threshold": "x"})},
        {"about": json.dumps({"format": 1, **asdict(ABOUT), "dim": 10**12})},
    ],
    ids=lambda changes: f"{next(iter(changes))} {str(next(iter(changes.values())))[:20]}",
)
def test_an_export_made_by_a_stranger_is_named_and_leaves_nothing(
    changes: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    export_rows(store, tmp_path / "all.parquet")
    forged(tmp_path / "all.parquet", **changes)
    with pytest.raises(InputError, match=r"all\.parquet"):
        create_filled(tmp_path / "new", Exported(tmp_path / "all.parquet"))
    assert [path.name for path in tmp_path.iterdir()] == ["all.parquet"]


def test_more_than_an_export_of_its_size_holds_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    export_rows(store, path)
    forged(path, thumbnail=[bytes(1 << 19)] * N)
    tight = export.ExportLimits(ratio=2, small_bytes=1 << 20)
    with pytest.raises(InputError, match=r"all\.parquet"):
        create_filled(tmp_path / "new", Exported(path, tight))
    with pytest.raises(InputError, match=r"49 .*48"):
        Exported(path, export.ExportLimits(rows=48))
    assert [path.name for path in tmp_path.iterdir()] == ["all.parquet"]


def test_a_pipe_is_no_export(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "all.parquet")
    for place in (tmp_path / "all.parquet", tmp_path):
        with pytest.raises(InputError, match=r"all\.parquet"):
            Exported(place)


FILL = """
import signal, sys, time
from pathlib import Path
from lookalike.gallery.export import Exported, create_filled
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
def halt(done, total):
    print("halfway", flush=True)
    time.sleep(60)
create_filled(Path(sys.argv[1]), Exported(Path(sys.argv[2])), halt)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_of_a_gallery_whose_making_was_ended(how: signal.Signals, store: Store, tmp_path: Path) -> None:
    export_rows(store, tmp_path / "all.parquet")
    command = [sys.executable, "-c", FILL, str(tmp_path / "new"), str(tmp_path / "all.parquet")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        process.send_signal(how)
    assert (how == signal.SIGKILL) == (len(list(tmp_path.iterdir())) == 2)
    create_filled(tmp_path / "new", Exported(tmp_path / "all.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "new"]


def test_what_is_done_is_on_the_disk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before the name, the name before it is said."""
    steps: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(handle: int) -> None:
        steps.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def seen_replace(self: Path, target: Path) -> Path:
        steps.append(("rename", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    export_rows(store, tmp_path / "all.parquet")
    assert [step for step, _ in steps[-3:]] == ["fsync", "rename", "fsync"]
    assert [name for _, name in steps[-2:]] == ["all.parquet", tmp_path.name]
    create_filled(tmp_path / "new", Exported(tmp_path / "all.parquet"))
    named = steps.index(("rename", "new"))
    assert ("fsync", "gallery.db") in steps[:named]
    assert steps[named:] == [("rename", "new"), ("fsync", tmp_path.name)]
