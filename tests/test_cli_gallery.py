"""`lookalike gallery`: each command on real pictures, what it prints, and how it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import lookalike
from lookalike import Gallery
from lookalike.cli.gallery_options import parse_filter
from lookalike.cli.main import app
from lookalike.errors import InputError
from lookalike.gallery.query import Query, parse_threshold
from lookalike.gallery.store.base import NewItem
from small_gallery import album, model_folder, picture


def gallery(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["gallery", command, *map(str, arguments)])


def good(command: str, *arguments: object) -> str:
    result = gallery(command, *arguments)
    assert result.exit_code == 0, result.exception
    assert result.stderr == ""  # no bars where there is no terminal
    return result.stdout


def tree_of(command: str, *arguments: object) -> Any:
    return json.loads(good(command, *arguments, "--json"))


def refusal(command: str, *arguments: object) -> InputError:
    error = gallery(command, *arguments).exception
    assert isinstance(error, InputError), error
    assert "\n" not in error.message
    assert error.remedy
    return error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model", threshold=0.95)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return album(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def filled(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("filled") / "photos.gallery"
    made = good("create", place, "--model", model)
    assert "vectors of 32 numbers" in made
    assert f"lookalike gallery add {place} IMAGES" in made
    assert "12" in good("add", place, photos)
    return place


@pytest.fixture
def own(filled: Path, tmp_path: Path) -> Path:
    """A gallery to change."""
    return shutil.copytree(filled, tmp_path / "own.gallery")


def test_search_prints_scores_ids_labels_and_paths(filled: Path, photos: Path) -> None:
    query = photos / "dog" / "2.png"
    lines = good("search", filled, query, "-k", 3).splitlines()
    assert lines[0] == f"{query}  (exact)"
    score, id, label, path = lines[1].split()
    assert 0 < float(score) < 1
    assert Path(path).parent == photos / label
    assert path != str(query)
    assert int(id) >= 1
    assert len(lines) == 5
    assert lines[-1] == "12 items, k = 3"


def test_a_file_that_is_in_the_gallery_is_named_and_not_counted(filled: Path, photos: Path, tmp_path: Path) -> None:
    original = photos / "dog" / "2.png"
    query = shutil.copy(original, tmp_path / "copy.png")
    wall = tmp_path / "wall.html"
    text = good("search", filled, query, "-k", 3, "--html", wall).splitlines()
    (each,) = tree_of("search", filled, query, "-k", 3)["queries"]
    assert [row["path"] for row in each["same"]] == [str(original)]
    assert text[1] == f"  same file: {each['same'][0]['id']}  {original}"
    assert len(each["hits"]) == 3
    assert str(original) not in [hit["path"] for hit in each["hits"]]
    words = Page(wall.read_text()).words
    assert f"same file: 2.png · id {each['same'][0]['id']}" in words
    assert "3 hits, exact search" in words


def as_another_file(picture: Path, folder: Path) -> Path:
    """The same pixels in a file of other bytes, which is not told apart from the rows of a gallery."""
    with Image.open(picture) as image:
        image.save(folder / "query.bmp")
    return folder / "query.bmp"


def test_the_models_threshold_is_not_used(filled: Path, photos: Path, tmp_path: Path) -> None:
    query, wall = as_another_file(photos / "dog" / "0.png", tmp_path), tmp_path / "wall.html"
    tree = tree_of("search", filled, query, "-k", 12)
    assert (tree["threshold"], tree["calibrated"], tree["calibrated_on"]) == (None, False, None)
    assert len(tree["queries"][0]["hits"]) == 12
    good("search", filled, query, "--html", wall)
    assert 'class="above"' not in wall.read_text()
    fault = refusal("search", filled, query, "--threshold", "calibrated")
    assert "has no calibrated threshold" in fault.message
    assert "gallery calibrate" in fault.remedy
    assert "0.950 is the model's, for images like those that the model was trained on" in fault.remedy


def test_a_gallery_of_few_labels_is_not_calibrated(filled: Path) -> None:
    fault = refusal("calibrate", filled)
    assert all(number in fault.message for number in (str(filled), "12", "3 labels", "48 pairs"))
    assert "1,000 pairs" in fault.remedy


def calibrated(gallery: Path, threshold: float) -> str:
    """Give a small gallery a threshold of its own; what it rests on, in words."""
    with Gallery.open(gallery, write=True) as opened:
        opened.store.calibrated(replace(opened.about, own_threshold=threshold, own_rows=12, own_labels=3))
        return str(opened.about.calibrated_on)


def test_the_calibrated_threshold_is_used_if_asked_for(filled: Path, photos: Path, tmp_path: Path) -> None:
    filled = Path(shutil.copytree(filled, tmp_path / "own.gallery"))
    query = as_another_file(photos / "dog" / "0.png", tmp_path)
    on, wall = calibrated(filled, 0.95), tmp_path / "wall.html"
    assert on == "12 labelled items of this gallery with 3 labels"
    good("search", filled, query, "--html", wall)
    assert 'class="above"' in wall.read_text()
    assert "score from 0.950" in wall.read_text()
    assert f"(calibrated on {on})" in wall.read_text()
    text = good("search", filled, query, "-k", 12, "--threshold", "calibrated")
    assert text.splitlines()[-1] == f"12 items, k = 12, score from 0.950 (calibrated on {on})"
    tree = tree_of("search", filled, query, "-k", 12)
    assert (tree["threshold"], len(tree["queries"][0]["hits"])) == (None, 12)
    tree = tree_of("search", filled, query, "-k", 12, "--threshold", "calibrated")
    assert (tree["threshold"], tree["calibrated"]) == (0.95, True)
    scores = [hit["score"] for hit in tree["queries"][0]["hits"]]
    assert min(scores) >= 0.95
    assert len(scores) < 12
    tree = tree_of("search", filled, query, "--threshold", "0.2", "-k", 12)
    assert (tree["threshold"], tree["calibrated"]) == (0.2, False)
    assert len(tree["queries"][0]["hits"]) > len(scores)


def test_the_tree_of_a_search_is_what_the_library_says(filled: Path, photos: Path, model: Path) -> None:
    paths = [photos / "emu" / "1.png", photos / "cat" / "0.png"]
    tree = tree_of("search", filled, *paths, "--id", 3, "--filter", "label=cat,emu", "--exact")
    assert set(tree) == {
        "gallery",
        "fingerprint",
        "items",
        "k",
        "rerank",
        "filter",
        "threshold",
        "calibrated",
        "calibrated_on",
        "queries",
    }
    assert (tree["gallery"], tree["items"], tree["k"], tree["threshold"]) == (str(filled), 12, 10, None)
    assert tree["fingerprint"] == lookalike.load(model).fingerprint
    assert tree["filter"] == {"label": ["cat", "emu"]}
    assert [each["query"] for each in tree["queries"]] == [*map(str, paths), 3]
    assert all(each["exact"] for each in tree["queries"])
    with lookalike.Gallery.open(filled) as opened:
        found = opened.search([*paths, 3], filter={"label": ["cat", "emu"]}, threshold=None)
    for each, expected in zip(tree["queries"], found, strict=True):
        assert [(hit["id"], hit["path"], hit["label"], hit["metadata"]) for hit in each["hits"]] == [
            (hit.id, hit.path, hit.label, dict(hit.metadata)) for hit in expected.hits
        ]
        assert [hit["score"] for hit in each["hits"]] == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)


class Page(HTMLParser):
    """Pictures, links to elsewhere, and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[tuple[str, str]] = []
        self.elsewhere: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.pictures.append((values["src"] or "", values["alt"] or ""))
        self.elsewhere += [value for key in ("src", "href") if (value := values.get(key)) and value[:5] != "data:"]

    def handle_data(self, data: str) -> None:
        self.words += [data.strip()] if data.strip() else []


def test_the_wall_holds_query_and_answers_and_needs_nothing_else(filled: Path, photos: Path, tmp_path: Path) -> None:
    query = picture(tmp_path / "<b>odd & name.png", 7)
    wall = tmp_path / "wall.html"
    text = good("search", filled, query, "--id", 5, "-k", 4, "--html", wall)
    assert text.splitlines()[-1] == str(wall)
    page = Page(wall.read_text())
    assert page.elsewhere == []
    assert "url(" not in wall.read_text()
    assert len(page.pictures) == 2 * (1 + 4)
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source, _ in page.pictures)
    assert page.pictures[0][1] == f"the query: {query}"
    assert str(query) in page.words
    assert "item 5" in page.words
    tree = tree_of("search", filled, query, "-k", 4)
    for hit in tree["queries"][0]["hits"]:
        assert f"{hit['score']:.3f}" in page.words
        assert f"{Path(hit['path']).name} · id {hit['id']}" in page.words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["<b>odd & name.png", "wall.html"]


def test_several_images_as_one_query(filled: Path, photos: Path, tmp_path: Path) -> None:
    image, page = photos / "dog" / "0.png", tmp_path / "page.html"
    less = photos / "emu" / "1.png"
    tree = tree_of(
        "search", filled, image, "--id", 2, "--unlike", less, "--unlike-id", 7, "--box", "0,0,32,32", "-k", 3
    )
    (query,) = tree["queries"]
    expected = {"like": [str(image), 2], "unlike": [str(less), 7], "unlike_weight": 0.5, "box": [0, 0, 32, 32]}
    assert query["query"] == expected
    with Gallery.open(filled) as opened:
        found = opened.search(Query([image, 2], unlike=[less, 7], box=(0, 0, 32, 32)), k=3)
    assert [hit["id"] for hit in query["hits"]] == [hit.id for hit in found]
    text = good("search", filled, image, "--id", 2, "--together", "--rerank", 8, "-k", 3, "--html", page)
    assert text.splitlines()[0] == f"{image} + item 2  (exact)"
    assert "the 8 nearest re-ranked" in text
    assert "2 images, one query" in Page(page.read_text()).words


def test_queries_of_several_images_that_are_refused(filled: Path, photos: Path) -> None:
    image = photos / "dog" / "0.png"
    for arguments, named in (
        (("--id", 1, "--unlike-weight", 1), "--unlike-weight"),
        (("--id", 1, "--box", "0,0,9,9"), "box"),
        ((image, image, "--box", "0,0,9,9"), "box"),
        ((image, "--box", "0,0,9"), "0,0,9"),
        ((image, "--box", "0,0,9,900"), "0,0,9,900"),
        ((image, "--unlike-id", 99), "99"),
        ((image, "-k", 5, "--rerank", 4), "rerank"),
    ):
        assert named in refusal("search", filled, *arguments).message


def test_reembed(filled: Path, photos: Path, tmp_path: Path) -> None:
    own = shutil.copytree(filled, tmp_path / "own.gallery")
    other, third = model_folder(tmp_path / "other", seed=1), model_folder(tmp_path / "third", seed=2)
    text = good("reembed", own, "--model", other)
    assert text == f"{own}: 12 items with vectors of {other} (12 embedded)\n"
    with Gallery.open(own, write=True) as opened:
        opened.store.add([NewItem("/gone.png", b"g" * 32, opened.vectors([1])[0])])
    assert "/gone.png" in refusal("reembed", own, "--model", third).message
    copy = shutil.copytree(own, tmp_path / "copy.gallery")
    good("compact", copy, "--discard-reembed")
    assert (len(list(own.glob("reembed-*.vectors"))), len(list(copy.glob("reembed-*.vectors")))) == (1, 0)
    tree = tree_of("reembed", own, "--model", third, "--lost", "remove")
    assert (tree["items"], tree["embedded"], tree["kept"], tree["thumbnails"]) == (12, 0, 12, 0)
    assert [one["path"] for one in tree["removed"]] == ["/gone.png"]
    assert tree["model"] == str(third)


def test_a_wall_that_cannot_be_written_is_refused(filled: Path, tmp_path: Path) -> None:
    path = tmp_path / "no" / "w.html"
    assert str(path) in refusal("search", filled, "--id", 1, "--html", path).message
    assert list(tmp_path.iterdir()) == []


def test_a_wall_without_an_answer_says_so(filled: Path, tmp_path: Path) -> None:
    query = picture(tmp_path / "new.png", 12345)
    assert "  no hits" in good("search", filled, query, "--threshold", "0.9999", "--html", tmp_path / "w.html")
    assert "0 hits, exact search" in Page((tmp_path / "w.html").read_text()).words


def test_search_is_refused_in_plain_words(filled: Path, tmp_path: Path) -> None:
    assert "nothing to search with" in refusal("search", filled).message
    assert "99" in refusal("search", filled, "--id", 99).message
    assert "cannot be read" in refusal("search", filled, tmp_path / "gone.png").message
    assert "no such file" in refusal("search", filled, "a dog " * 50).message
    assert "xxx.png" in refusal("search", filled, "x" * 300 + ".png").message
    assert "'high'" in refusal("search", filled, "--id", 1, "--threshold", "high").message
    assert "not KEY=VALUE" in refusal("search", filled, "--id", 1, "--filter", "label").message
    refusal("search", tmp_path / "nowhere", "--id", 1)


def test_another_model_is_refused_and_a_moved_one_is_taken(
    filled: Path, photos: Path, model: Path, tmp_path: Path
) -> None:
    other = model_folder(tmp_path / "other", seed=3)
    fault = refusal("search", filled, photos / "cat" / "0.png", "--model", other)
    assert lookalike.load(other).fingerprint[:12] in fault.message
    assert lookalike.load(model).fingerprint[:12] in fault.remedy
    moved = shutil.copytree(model, tmp_path / "moved")
    assert "cat/0.png" in good("search", filled, photos / "cat" / "0.png", "--model", moved)


def test_add_skips_what_is_there_and_names_what_cannot_be_read(own: Path, photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "more" / "bad.png"
    picture(tmp_path / "more" / "new.png", 77)
    bad.write_text("no picture")
    tree = tree_of("add", own, photos, tmp_path / "more")
    assert (tree["added"], tree["replaced"], tree["skipped"], tree["items"]) == (1, 0, 12, 13)
    assert tree["failed"] == 1
    assert [one["path"] for one in tree["failed_files"]] == [str(bad)]
    assert "not an image" in tree["failed_files"][0]["reason"]
    info = tree_of("info", own, "--failed")
    assert info["failed"] == 1
    assert info["failed_files"] == tree["failed_files"]
    assert f"  {bad}: " in good("info", own, "--failed")


def test_remove_says_how_many(own: Path, photos: Path) -> None:
    assert good("remove", own, "--filter", "label=dog") == "4 items removed, 8 left\n"
    assert tree_of("remove", own, photos / "cat" / "0.png", "--id", 4)["removed"] == 2
    assert tree_of("remove", own, "--filter", "label=dog") == {"gallery": str(own), "removed": 0, "items": 6}
    assert "--filter" in refusal("remove", own).remedy


def test_ids_that_no_item_has_are_refused(own: Path) -> None:
    for command in (("remove",), ("update", "--label", "cat")):
        error = refusal(command[0], own, "--id", 1, "--id", 999, *command[1:])
        assert "999" in error.message
    assert tree_of("info", own)["items"] == 12


def test_update_changes_labels_and_metadata(own: Path) -> None:
    assert good("update", own, "--filter", "label=dog", "--label", "wolf") == "4 items updated\n"
    tree = tree_of("update", own, "--id", 1, "--metadata", "year=2012", "--metadata", "by=Ann")
    assert tree == {"gallery": str(own), "updated": 1, "items": 12}
    with Gallery.open(own) as opened:
        assert {item.label for item in opened.store.rows()} == {"cat", "wolf", "emu"}
        assert opened.store.get([1])[0].metadata == {"year": 2012, "by": "Ann"}
    refusal("update", own, "--id", 1)
    refusal("update", own, "--label", "x")


def test_add_fails_if_no_file_can_be_read(own: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    result = gallery("add", own, tmp_path / "bad.png", "--json")
    assert (result.exit_code, json.loads(result.stdout)["failed"]) == (1, 1)
    picture(tmp_path / "good.png", 99)
    assert tree_of("add", own, tmp_path / "bad.png", tmp_path / "good.png")["added"] == 1


def test_search_reads_a_pipe_once(own: Path, photos: Path, tmp_path: Path) -> None:
    data, pipe, page = (photos / "cat" / "0.png").read_bytes(), tmp_path / "pipe", tmp_path / "page.html"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(data))
    writer.start()
    text = good("search", own, pipe, "-k", 2, "--html", page)
    writer.join()
    assert text.startswith(f"{pipe}  (exact)")
    assert len(Page(page.read_text()).pictures) == 3


def test_info_says_what_it_is(filled: Path, model: Path) -> None:
    tree = tree_of("info", filled)
    with lookalike.Gallery.open(filled) as opened:
        assert tree["model"] == opened.info()["model"]
        assert tree["items"] == 12
    text = good("info", filled)
    assert f"{model.resolve()}, {lookalike.load(model).fingerprint[:12]}…" in text
    assert "not calibrated" in text
    assert "0.950, 1 % false matches on images like those that the model was trained on; not used" in text


def test_check_is_quiet_when_all_is_well_and_fails_when_it_is_not(own: Path) -> None:
    assert tree_of("check", own, "--recall") == {
        "gallery": str(own), "items": 12, "problems": [], "recall_at_10": 1.0,
    }  # fmt: skip
    assert good("check", own) == "12 items, 0 problems\n"
    assert "against the exact one: 1.0000" in good("check", own, "--recall")
    database = max((path for path in own.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(database.read_bytes())
    with lookalike.Gallery.open(own) as opened:
        half = opened.store.vectors([4])[0].astype("float16").tobytes()
    at = bytes(data).find(half)
    assert at > 0
    data[at + 9] ^= 0x40
    database.write_bytes(data)
    result = gallery("check", own, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problems"]
    assert "problem: " in gallery("check", own).stdout


def test_what_is_exported_makes_the_same_gallery(filled: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.parquet"
    assert good("export", filled, "-o", file) == f"{file}: 12 items\n"
    assert good("create", tmp_path / "copy", "--from", file) == f"{tmp_path / 'copy'}: 12 items\n"
    arguments = ("--id", 4)
    one, other = (tree_of("search", place, *arguments)["queries"] for place in (filled, tmp_path / "copy"))
    assert [hit["path"] for hit in one[0]["hits"]] == [hit["path"] for hit in other[0]["hits"]]
    assert str(tmp_path / "copy") in refusal("create", tmp_path / "copy", "--from", file).message
    assert str(file) in refusal("export", filled, "--out", file).message
    wrong = model_folder(tmp_path / "other", seed=3)
    assert str(file) in refusal("create", tmp_path / "new", "--from", file, "--model", wrong).message
    assert not (tmp_path / "new").exists()


def test_create_wants_a_free_place(filled: Path, model: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal("create", tmp_path / "new", "--model", tmp_path / "gone").message
    refusal("create", filled, "--model", model)
    assert "no gallery is named" in refusal("create", "postgresql://db/x", "--model", model).message
    assert list(tmp_path.iterdir()) == []


def test_duplicates_are_grouped(own: Path, photos: Path, tmp_path: Path) -> None:
    assert tree_of("duplicates", own)["groups"] == []
    Image.open(photos / "cat" / "1.png").save(tmp_path / "again.jpg", quality=80)
    good("add", own, tmp_path / "again.jpg")
    (group,) = tree_of("duplicates", own)["groups"]
    assert not group["exact"]
    assert [row["path"] for row in group["items"]] == [str(photos / "cat" / "1.png"), str(tmp_path / "again.jpg")]
    text = good("duplicates", own)
    assert "near-duplicates" in text
    assert text.endswith("1 group, 2 items of 13\n")
    assert tree_of("duplicates", own, "--cosine", "1")["groups"] == []
    assert [row["copy_of"] for row in group["items"]] == [None, None]


def test_equal_files_are_told_from_near_copies(own: Path, photos: Path, tmp_path: Path) -> None:
    original = photos / "cat" / "1.png"
    Image.open(original).save(tmp_path / "again.jpg", quality=80)
    for name in ("copy.png", "third.png"):
        (tmp_path / name).write_bytes(original.read_bytes())
        good("add", own, tmp_path / name)
    good("add", own, tmp_path / "again.jpg")
    (group,) = tree_of("duplicates", own)["groups"]
    first = group["items"][0]["id"]
    assert not group["exact"]
    assert {Path(row["path"]).name: row["copy_of"] for row in group["items"]} == {
        "1.png": None, "copy.png": first, "third.png": first, "again.jpg": None}  # fmt: skip
    text = good("duplicates", own)
    assert text.count(f"(same file as {first})") == 2
    with lookalike.Gallery.open(own) as opened:
        (found,) = opened.duplicates()
        assert list(found.copy_of.values()) == [first, first]


def test_compact_keeps_what_is_there(own: Path) -> None:
    good("remove", own, "--filter", "label=emu")
    assert good("compact", own) == f"{own}: 8 items\n"
    assert good("check", own) == "8 items, 0 problems\n"


def test_sync_removes_what_is_gone(model: Path, tmp_path: Path) -> None:
    photos = album(tmp_path / "photos")
    good("create", tmp_path / "g", "--model", model)
    good("add", tmp_path / "g", photos, "--label", "animal")
    (photos / "dog" / "0.png").unlink()
    picture(photos / "dog" / "1.png", 5)
    assert tree_of("add", tmp_path / "g", photos)["removed"] == 0
    tree = tree_of("add", tmp_path / "g", photos, "--sync", "--no-folder-labels")
    assert (tree["removed"], tree["items"]) == (1, 11)
    assert tree_of("info", tmp_path / "g")["items"] == 11


def test_watching_keeps_in_step_until_ctrl_c(model: Path, tmp_path: Path) -> None:
    photos = album(tmp_path / "photos", each=1)
    good("create", tmp_path / "g", "--model", model)
    command = [
        sys.executable,
        "-m",
        "lookalike.cli.main",
        "gallery",
        "add",
        tmp_path / "g",
        photos,
        "--watch",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["added"] == 3
        picture(photos / "owl" / "new.png", 50)
        (photos / "cat" / "0.png").unlink()
        rows, seen = 3, {"added": 0, "removed": 0}
        while 0 in seen.values():
            tree = json.loads(watching.stdout.readline())
            seen = {key: count + tree[key] for key, count in seen.items()}
            rows = tree["items"]
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=60)
    assert (seen, rows) == ({"added": 1, "removed": 1}, 3)
    assert watching.returncode == 130
    assert said.splitlines() == [
        f"watching {photos}; stop with Ctrl-C", "stopped; what was added is kept, and the same command goes on",
    ]  # fmt: skip
    assert tree_of("check", tmp_path / "g")["problems"] == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ([], None),
        (["label=cat"], {"label": ["cat"]}),
        (["label=cat", "label=7,dog"], {"label": ["cat", "7", "dog"]}),
        (["year=2012,1.5"], {"year": ["2012", 2012, "1.5", 1.5]}),
        (["sharp=true", "by=null"], {"sharp": ["true", True], "by": ["null", None]}),
        (["by="], {"by": [""]}),
        (["note=a=b"], {"note": ["a=b"]}),
        (['by=["Bo, Jr.", "Ann"]'], {"by": ["Bo, Jr.", "Ann"]}),
        (["x=NaN", "y={}"], {"x": ["NaN"], "y": ["{}"]}),
    ],
)
def test_filters_as_they_are_typed(given: list[str] | None, expected: object) -> None:
    assert parse_filter(given) == expected


@pytest.mark.parametrize("given", ["label", "=cat", "", "by=[", "by=[]", "by=[1]"])
def test_what_is_no_filter_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="--filter"):
        parse_filter([given])


def test_thresholds_as_they_are_typed() -> None:
    assert [parse_threshold(text) for text in ("calibrated", "none", "0.5", "-1")] == ["calibrated", None, 0.5, -1.0]
    for wrong in ("", "nan", "1.5", "high"):
        with pytest.raises(InputError, match=f"'{wrong}'"):
            parse_threshold(wrong)


def test_what_lies_below_a_folder_that_was_moved_is_removed_at_once(model: Path, tmp_path: Path) -> None:
    photos, place = album(tmp_path / "photos", each=2), tmp_path / "g"
    (photos / "cat" / "bad.png").write_bytes(b"no picture")
    good("create", place, "--model", model)
    good("add", place, photos)
    photos.rename(tmp_path / "pictures")
    good("add", place, tmp_path / "pictures")
    for wrong in (tmp_path / "photo", tmp_path / "photos" / "cat" / "9.png"):
        error = refusal("remove", place, photos / "dog", wrong)
        assert str(wrong) in error.message
    assert tree_of("info", place)["items"] == 12
    assert good("remove", place, f"{photos / 'dog'}/") == "2 items removed, 10 left\n"
    assert tree_of("remove", place, photos) == {"gallery": str(place), "removed": 4, "items": 6}
    rejected = tree_of("info", place, "--failed")["failed_files"]
    assert [one["path"] for one in rejected] == [str(tmp_path / "pictures" / "cat" / "bad.png")]
    assert good("remove", place, rejected[0]["path"]) == "0 items removed, 6 left\n"  # forgotten
    assert tree_of("info", place)["failed"] == 0


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_gone_is_synced_with_a_yes(model: Path, there: bool, tmp_path: Path) -> None:
    photos, place = album(tmp_path / "photos", each=1), tmp_path / "g"
    good("create", place, "--model", model)
    good("add", place, photos)
    shutil.rmtree(photos)
    if there:
        photos.mkdir()
    error = refusal("add", place, photos, "--sync")
    assert str(photos) in error.message
    assert "--yes" in error.remedy
    assert tree_of("info", place)["items"] == 3
    assert "--yes" in refusal("add", place, photos, "--yes").message
    tree = tree_of("add", place, photos, "--sync", "--yes")
    assert (tree["removed"], tree["items"]) == (3, 0)
    if not there:
        assert "no such file or folder" in refusal("add", place, photos, "--sync", "--yes").message


@pytest.mark.parametrize(("answer", "rows"), [("n\n", 3), ("y\n", 0)])
def test_on_a_terminal_it_is_asked_for(
    answer: str, rows: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, place = album(tmp_path / "photos", each=1), tmp_path / "g"
    good("create", place, "--model", model)
    good("add", place, photos)
    photos.rename(tmp_path / "elsewhere")
    monkeypatch.setattr("lookalike.cli.gallery_add.on_terminal", lambda: True)
    result = CliRunner().invoke(app, ["gallery", "add", str(place), str(photos), "--sync"], input=answer)
    assert "this folder is gone, but the gallery has 3 of it" in result.stderr
    assert tree_of("info", place)["items"] == rows


def test_rows_of_a_zip_and_a_table_are_below_them(own: Path, tmp_path: Path) -> None:
    table = pa.table({"jpg": [(album(tmp_path / "more", each=1) / "cat" / "0.png").read_bytes()] * 2})
    pq.write_table(table, tmp_path / "shard.parquet")
    good("add", own, tmp_path / "shard.parquet")
    (tmp_path / "shard.parquet").unlink()
    assert good("remove", own, tmp_path / "shard.parquet") == "2 items removed, 12 left\n"


def test_files_of_other_kinds_are_counted_by_add(model: Path, tmp_path: Path) -> None:
    photos, place = album(tmp_path / "photos", each=1), tmp_path / "g"
    for name in ("1.HEIC", "2.heic", "3.mov"):
        (photos / "cat" / name).write_bytes(b"")
    good("create", place, "--model", model)
    assert "  2 .heic and 1 .mov files were left alone: only JPEG" in good("add", place, photos)
    tree = tree_of("add", place, photos)
    assert (tree["passed_over"], tree["notes"]) == ({".heic": 2, ".mov": 1}, [])
    assert "1 .heic file was left alone" in refusal("add", place, *_only_heic(tmp_path / "heic")).message


def _only_heic(folder: Path) -> list[Path]:
    folder.mkdir()
    (folder / "1.heic").write_bytes(b"")
    return [folder]


def test_names_that_are_not_utf8(own: Path, tmp_path: Path) -> None:
    query = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    picture(tmp_path / "1.png", 1).rename(query)
    html = tmp_path / "wall.html"
    result = gallery("search", own, query, "--html", html)
    assert result.exit_code == 0
    assert "caf\\xe9.png" in result.stdout
    assert "caf\\xe9.png" in html.read_text(encoding="utf-8")
    assert tree_of("search", own, query)["queries"][0]["query"] == f"{tmp_path}/caf\\xe9.png"
    result = gallery("add", own, query)
    assert result.exit_code == 1
    assert "caf\\xe9.png: its name is not UTF-8" in result.stdout
