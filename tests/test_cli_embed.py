"""`lookalike embed`: vectors of images as Parquet files, without a gallery."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from lookalike import Gallery
from lookalike.cli.main import app
from lookalike.errors import InputError
from lookalike.gallery import parquet_shards
from small_gallery import album, model_folder, picture


def embed(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["embed", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model")


def test_images_become_parquet_files_and_a_gallery(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_shards, "SHARD_ITEMS", 5)
    photos, out = album(tmp_path / "photos", each=3), tmp_path / "vectors"
    (photos / "cat" / "bad.png").write_bytes(b"not an image")
    tree = json.loads(embed(photos, "-o", out, "--model", model, "--json").stdout)
    assert (tree["added"], tree["skipped"], tree["failed"], tree["files"]) == (9, 0, 1, 2)
    assert len(list(out.glob("*.parquet"))) == 2
    table = pq.read_table(out)
    assert table.num_rows == 9
    assert set(table["label"].to_pylist()) == {"cat", "dog", "emu"}
    assert "bad.png" in json.loads((out / "_failed.jsonl").read_text())["path"]
    with (
        Gallery.create_from(tmp_path / "made", out) as made,
        Gallery.create(tmp_path / "plain", model) as plain,
    ):
        plain.add(photos)
        assert made.about == plain.about
        ours, theirs = ({item.path: item for item in gallery.store.rows()} for gallery in (made, plain))
        assert ours.keys() == theirs.keys()
        for path, item in ours.items():
            ((one,), (other,)) = made.vectors([item.id]), plain.vectors([theirs[path].id])
            np.testing.assert_allclose(one, other, atol=2e-3)


def test_images_that_are_there_are_skipped(model: Path, tmp_path: Path) -> None:
    photos, out = album(tmp_path / "photos", each=1), tmp_path / "vectors"
    assert embed(photos, "--out", out, "--model", model).stdout.startswith("3 embedded\n")
    picture(photos / "cat" / "new.png", 50)
    assert embed(photos, "--out", out, "--model", model).stdout.startswith("1 embedded, 3 skipped")
    other = embed(photos, "--out", out, "--model", model_folder(tmp_path / "other", seed=3))
    assert isinstance(other.exception, InputError)
    assert str(out) in other.exception.message


def test_it_fails_if_no_image_can_be_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    assert embed(tmp_path / "bad.png", "-o", tmp_path / "vectors", "--model", model).exit_code == 1


def test_an_address_of_a_cluster_needs_the_backend(model: Path, tmp_path: Path) -> None:
    refused = embed(tmp_path, "-o", tmp_path / "vectors", "--model", model, "--ray-address", "auto").exception
    assert isinstance(refused, InputError)
    assert "--backend ray" in refused.message
