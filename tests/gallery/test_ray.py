"""Embedding on a real Ray cluster of two nodes: the same rows, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingesting import about, encoded, numbers, rows_of
from typer.testing import CliRunner

from lookalike.cli.main import app
from lookalike.data.image_folder import read_folder
from lookalike.errors import InputError
from lookalike.gallery import ingest as ingesting
from lookalike.gallery import ray as with_ray
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.ingest import ingest
from lookalike.gallery.parquet_shards import ExistingShards, write_shards
from lookalike.gallery.ray import Cluster
from lookalike.gallery.sources.resolve import resolve_source
from lookalike.gallery.store.base import Store
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.runtime import TorchRuntime
from small_gallery import album, model_folder

os.environ |= {  # read when ray is imported
    "RAY_AUTH_MODE": "disabled",  # or a token is written into the person's home
    "RAY_USAGE_STATS_ENABLED": "0",
}
pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes, as `ray start` makes them, all on this machine."""
    from ray.cluster_utils import Cluster as Nodes

    how: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    soon["worker_niceness"] = 0  # or workers get no turn beside other tests
    made = Nodes(initialize_head=True, head_node_args={**how, "_system_config": soon})
    made.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model", threshold=0.5)


@pytest.fixture(scope="module")
def loaded(model: Path) -> ImageModel:
    return load(model)


def new_store(path: Path, loaded: ImageModel) -> Store:
    return SqliteStore.create(path, about(TorchRuntime(loaded)))


def same(one: Store, other: Store) -> None:
    """Both stores hold the same rows, but for the ids."""
    ours, theirs = rows_of(one), rows_of(other)
    assert ours.keys() == theirs.keys()
    for path, row in ours.items():
        assert {**vars(row), "id": 0} == {**vars(theirs[path]), "id": 0}
        assert one.thumbnail(row.id) == other.thumbnail(theirs[path].id)
    vectors = one.vectors([row.id for row in ours.values()])
    others = other.vectors([theirs[path].id for path in ours])
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)  # kept as float16
    assert ((vectors * others).sum(1) / lengths).min() >= 0.9999


def test_the_rows_are_those_of_one_machine(nodes: Any, loaded: ImageModel, tmp_path: Path) -> None:
    photos = album(tmp_path / "photos")
    (photos / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 cut off")
    (photos / "cat" / "again.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    with new_store(tmp_path / "one", loaded) as one, new_store(tmp_path / "many", loaded) as many:
        ingest(one, TorchRuntime(loaded), photos)
        with Cluster(nodes.address) as cluster:
            report = ingest(many, TorchRuntime(loaded), photos, cluster=cluster)
            assert numbers(report) == {"added": 13, "failed": 1}
            assert [fault.path for fault in report.failed_files] == [str(photos / "cat" / "broken.jpg")]
            same(one, many)
            assert one.rejected() == many.rejected()
            (photos / "dog" / "0.png").write_bytes(encoded(77))
            (photos / "emu" / "3.png").unlink()
            report = ingest(many, TorchRuntime(loaded), photos, cluster=cluster, sync=True)
        assert numbers(report) == {"replaced": 1, "skipped": 11, "failed": 1, "failed_before": 1, "removed": 1}
        ingest(one, TorchRuntime(loaded), photos, sync=True)
        same(one, many)


def test_objects_are_read_where_they_are(nodes: Any, loaded: ImageModel, tmp_path: Path) -> None:
    photos = album(tmp_path / "my photos", each=2)
    with new_store(tmp_path / "store", loaded) as store, Cluster(nodes.address) as cluster:
        report = ingest(store, TorchRuntime(loaded), photos.as_uri(), cluster=cluster)
        assert numbers(report) == {"added": 6}
        rows = rows_of(store)
        assert sorted(rows) == sorted(file.as_uri() for file in photos.rglob("*.png"))
        assert {row.label for row in rows.values()} == {"cat", "dog", "emu"}
        assert numbers(ingest(store, TorchRuntime(loaded), photos.as_uri())) == {"skipped": 6}  # by one machine, too


def test_what_lies_in_another_file_is_refused(nodes: Any, loaded: ImageModel, tmp_path: Path) -> None:
    import shutil

    album(tmp_path / "photos", each=2)
    catalog = read_folder(Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")))
    with (
        new_store(tmp_path / "store", loaded) as store,
        Cluster(nodes.address) as cluster,
        pytest.raises(InputError, match="inside another file"),
    ):
        ingest(store, TorchRuntime(loaded), catalog, cluster=cluster)


def processes(name: str) -> list[int]:
    """Ids of running processes whose command begins so."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(name.encode()):
                found.append(int(folder.name))
    return found


def test_a_lost_worker_and_a_lost_machine_cost_no_picture(
    nodes: Any, loaded: ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_ray, "TASK_IMAGES", 4)
    monkeypatch.setattr(ingesting, "WRITE_ITEMS", 4)  # so that what is done is said early
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(120):
        (photos / f"{number:03d}.jpg").write_bytes(encoded(number, "JPEG", (1500, 1000)))
    second = nodes.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    nodes.wait_for_nodes()
    gone = False

    def progress(done: int, total: int) -> None:
        nonlocal gone
        if done and not gone:
            gone = True
            workers = processes("ray::Map")
            assert workers
            os.kill(workers[0], signal.SIGKILL)
            nodes.remove_node(second, allow_graceful=False)

    with new_store(tmp_path / "many", loaded) as many, new_store(tmp_path / "one", loaded) as one:
        with Cluster(nodes.address) as cluster:
            report = ingest(many, TorchRuntime(loaded), photos, cluster=cluster, progress=progress)
        assert gone
        assert numbers(report) == {"added": 120}
        ingest(one, TorchRuntime(loaded), photos)
        same(one, many)


def test_shards_are_written_once_and_fill_a_gallery(
    nodes: Any, model: Path, loaded: ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_ray, "TASK_IMAGES", 5)
    photos, shards = album(tmp_path / "photos"), tmp_path / "shards"
    (photos / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 cut off")
    with Cluster(nodes.address) as cluster:
        done = write_shards(loaded, [photos], shards, location=str(model), cluster=cluster)
        assert (done.added, done.skipped, done.failed) == (12, 0, 1)
        assert len(list(shards.glob("*.parquet"))) == done.files >= 2
        assert "broken.jpg" in json.loads((shards / "_failed.jsonl").read_text())["path"]
        before = {file.name: file.stat().st_mtime_ns for file in shards.glob("*.parquet")}
        (photos / "dog" / "0.png").write_bytes(encoded(77))  # changed
        (photos / "dog" / "new.png").write_bytes(encoded(78))
        next(iter(sorted(shards.glob("*.parquet")))).unlink()  # as if a machine had not come to it
        again = write_shards(loaded, [photos], shards, location=str(model), cluster=cluster)
        assert again.failed == 1
        assert again.added + again.skipped == 13
        assert 3 <= again.added <= 7
        kept = {file.name: file.stat().st_mtime_ns for file in shards.glob("*.parquet") if file.name in before}
        assert len(kept) == len(before) - 1
        assert kept.items() <= before.items()
        assert not [*shards.glob(".*")]
        other = load(model_folder(tmp_path / "other", seed=3))
        with pytest.raises(InputError, match=str(shards)):
            write_shards(other, [photos], shards, cluster=cluster)
    with (
        Gallery.create_from(tmp_path / "made", shards) as made,
        Gallery.create(tmp_path / "plain", model) as plain,
    ):
        plain.add(photos)
        same(plain.store, made.store)
        assert made.about == plain.about


def test_other_files_of_the_same_gallery_may_lie_beside_the_shards(model: Path, tmp_path: Path) -> None:
    photos, rows = album(tmp_path / "photos", each=1), tmp_path / "rows"
    rows.mkdir()
    with Gallery.create(tmp_path / "g", model) as gallery:
        gallery.add(photos)
        gallery.export(rows / "exported.parquet")
        known = ExistingShards(rows, gallery.about)
    paths = [str(file) for file in photos.rglob("*.png")]
    assert sorted(known.by_path(paths)) == sorted(paths)
    assert known.last_run == 0


def test_the_command_line(nodes: Any, model: Path, tmp_path: Path) -> None:
    photos, place = album(tmp_path / "photos"), tmp_path / "p.gallery"

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(one) for one in arguments])

    assert run("gallery", "create", place, "--model", model).exit_code == 0
    said = run("gallery", "add", place, photos, "--backend", "ray", "--ray-address", nodes.address)
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith("12 added")
    shards = tmp_path / "shards"
    said = run("embed", photos, "-o", shards, "--model", model, "--backend", "ray", "--ray-address", nodes.address)
    assert said.stdout.splitlines() == [
        "12 embedded",
        f"Next: lookalike gallery create GALLERY --from {tmp_path / 'shards'}",
    ]
    assert isinstance(run("gallery", "add", place, photos, "--ray-address", "here:1").exception, InputError)
    assert isinstance(run("gallery", "add", place, photos, "--watch", "--backend", "ray").exception, InputError)
    nobody = run("gallery", "add", place, photos, "--backend", "ray", "--ray-address", "127.0.0.1:1")
    assert isinstance(nobody.exception, InputError)
    assert "no Ray cluster answers" in nobody.exception.message


def test_a_cluster_of_ones_own_is_quiet_and_goes_away(model: Path, tmp_path: Path) -> None:
    photos, place = album(tmp_path / "photos", each=2), tmp_path / "p.gallery"
    lookalike = [sys.executable, "-m", "lookalike.cli.main", "gallery"]
    subprocess.run([*lookalike, "create", place, "--model", model], check=True, capture_output=True)
    before = set(processes("ray::"))
    done = subprocess.run(
        [*lookalike, "add", place, photos, "--backend", "ray", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added"] == 6
    assert [line for line in done.stderr.splitlines() if "core_worker.cc" not in line] == []  # that is Ray's own advice
    end = time.monotonic() + 10
    while set(processes("ray::")) - before and time.monotonic() < end:
        time.sleep(0.1)
    assert not set(processes("ray::")) - before


def test_without_the_package_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="ray is not installed") as refused:
        Cluster()
    assert "[ray]" in (refused.value.remedy or "")


def test_a_list_may_name_objects(tmp_path: Path) -> None:
    photos = album(tmp_path / "photos", each=1)
    table = tmp_path / "list.csv"
    uris = sorted(file.as_uri() for file in photos.rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{uri},pet\n" for uri in uris))
    items: list[Any] = [*resolve_source(table).items()]
    assert [item.path for item in items] == uris
    assert [item.load() for item in items] == [file.read_bytes() for file in sorted(photos.rglob("*.png"))]
    assert np.all([item.label == "pet" for item in items])


@pytest.mark.parametrize("uri", ["nothing://bucket/photos", "file:///no/such/folder"])
def test_what_is_nowhere_is_named(uri: str) -> None:
    with pytest.raises(InputError, match=uri.split("/")[-1]):
        resolve_source(uri)
