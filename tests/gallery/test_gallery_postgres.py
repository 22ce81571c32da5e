"""A gallery in a database, by its URL: the same commands and answers as in a folder."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from postgres_server import Server
from typer.testing import CliRunner

from lookalike.cli.main import app, run
from lookalike.errors import InputError
from lookalike.gallery.gallery import Gallery
from small_gallery import album, model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model", threshold=0.5)


@pytest.fixture(scope="module")
def filled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("filled") / "photos.gallery"
    with Gallery.create(place, model) as gallery:
        gallery.add(album(place.parent / "photos"))
    return place


def url(server: Server, name: str) -> str:
    return f"postgresql://postgres:not-asked-for@/postgres?host={server.folder}#{name}"


def tree_of(command: str, *arguments: object) -> Any:
    result = CliRunner().invoke(app, ["gallery", command, *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_a_folder_moves_into_a_database_and_answers_as_before(postgres: Server, filled: Path, tmp_path: Path) -> None:
    place = url(postgres, "moved")
    with Gallery.open(filled) as gallery:
        gallery.export(tmp_path / "all.parquet")
    with Gallery.create_from(place, tmp_path / "all.parquet") as moved:
        assert len(moved) == 12
        moved.export(tmp_path / "back.parquet")
        assert (tmp_path / "back.parquet").stat().st_size > 1000
        shown = str(moved.location)
    assert "not-asked-for" not in shown
    query = filled.parent / "photos" / "dog" / "1.png"
    for more in ((), ("--threshold", "0.9"), ("--filter", "label=cat,emu")):
        one, other = (tree_of("search", gallery, query, "--id", 3, *more) for gallery in (filled, place))
        assert other["gallery"] == shown
        assert one["queries"] == other["queries"]
        assert one | {"gallery": shown} == other
    with pytest.raises(InputError) as caught:
        Gallery.create_from(place, tmp_path / "all.parquet")
    assert "not-asked-for" not in str(caught.value)


def test_pictures_are_added_found_and_removed(postgres: Server, filled: Path, model: Path) -> None:
    place = url(postgres, "fresh")
    photos = filled.parent / "photos"
    with Gallery.create(place, model):
        pass
    assert tree_of("add", place, photos)["added"] == 12
    assert tree_of("add", place, photos)["skipped"] == 12
    assert tree_of("info", place)["model"] == tree_of("info", filled)["model"]
    removed = tree_of("remove", place, "--filter", "label=dog")
    assert (removed["removed"], removed["items"]) == (4, 8)
    assert tree_of("duplicates", place)["groups"] == []
    assert tree_of("check", place, "--recall")["recall_at_10"] == 1.0


def test_no_command_prints_the_password(
    postgres: Server, model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = url(postgres, "covered").replace("&", "?")
    commands = [
        ["gallery", "create", place, "--model", str(model)],
        ["gallery", "create", place],
        ["gallery", "info", place, "--json"],
        ["gallery", "info", place, place],
        ["gallery", "info", place + "s"],
        ["gallery", "export", place, place],
        ["gallery", "search", place, place],
        ["gallery", place],
        [place],
        ["predict", place],
        ["data", "check", place],
        ["gallery", "info", f"host={postgres.folder} password=not-asked-for"],
    ]
    said = []
    for words in commands:
        monkeypatch.setattr(sys, "argv", ["lookalike", *words])
        with contextlib.suppress(SystemExit):
            run()
        said.append("".join(capfd.readouterr()))
        assert "not-asked-for" not in said[-1], words
    assert f"lookalike gallery add '{place.replace(':not-asked-for', '')}' " in said[0]


def test_a_damaged_file_leaves_no_gallery(postgres: Server, filled: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    with Gallery.open(filled) as gallery:
        gallery.export(path)
    data = bytearray(path.read_bytes())
    data[20:400] = bytes(380)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"all\.parquet"):
        Gallery.create_from(url(postgres, "damaged"), path)
    with pytest.raises(InputError):
        Gallery.open(url(postgres, "damaged"))
