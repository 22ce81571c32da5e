"""The commands of `lookalike data`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from faulty_server import Page, Site, serving
from lookalike.cli.main import app
from lookalike.data.registry import DATASETS, load_dataset
from lookalike.data.spec import HUB, DatasetSpec, Mirror, RemoteFile
from lookalike.errors import DownloadError, InputError
from small_sets import class_folders, hugging_face, tiny_imagenet, zip_of

TINY = "tiny-imagenet"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all data sets; nothing of the person's own environment counts."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "LOOKALIKE_MIRROR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("LOOKALIKE_DATA", str(tmp_path / "sets"))
    return tmp_path / "sets"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@pytest.fixture
def offered(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """A small Tiny ImageNet at the official address of one that is as small: the page of its zip."""
    home = tiny_imagenet(tmp_path / "made" / "tiny-imagenet-200")
    body = zip_of(home, tmp_path / "made" / "tiny-imagenet-200.zip", "tiny-imagenet-200/").read_bytes()
    site.pages["/tiny-imagenet-200.zip"] = Page(body)
    monkeypatch.setitem(DATASETS, TINY, small_spec(site.address, body))
    return site.pages["/tiny-imagenet-200.zip"]


def small_spec(address: str, body: bytes) -> DatasetSpec:
    checksum = f"md5:{hashlib.md5(body).hexdigest()}"
    file = RemoteFile("tiny-imagenet-200.zip", f"{address}/tiny-imagenet-200.zip", checksum, len(body))
    shards = ("train-00000-of-00001.parquet", "valid-00000-of-00001.parquet")
    hub = tuple(RemoteFile(name, f"{HUB}/datasets/tiny/{name}") for name in shards)
    mirrors = (Mirror("official", (file,)), Mirror("hub", hub, remark="It has no test images."))
    return dataclasses.replace(DATASETS[TINY], mirrors=mirrors, size_bytes=len(body))


def lookalike(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def refusal(*arguments: str | Path) -> InputError:
    error = lookalike(*arguments).exception
    assert isinstance(error, InputError), error
    return error


# list


def test_list_names_what_there_is_and_how_to_get_it(home: Path) -> None:
    output = lookalike("list").stdout
    assert "builtin" in output
    assert DATASETS[TINY].title in output
    assert f"lookalike data download {TINY}" in output
    assert DATASETS["cub200"].url in output
    assert "237 MiB to download" in output
    assert not home.exists(), "looking makes nothing"


def test_list_knows_what_is_installed_and_what_was_imported(home: Path) -> None:
    tiny_imagenet(home / TINY)
    class_folders(home / "pets")
    (home / f".{TINY}.download").mkdir()
    found = {one["name"]: one for one in json.loads(lookalike("list", "--json").stdout)}
    assert list(found) == ["builtin", *DATASETS, "pets"]
    assert found[TINY]["path"] == str(home / TINY)
    assert found["pets"]["path"] == str(home / "pets")
    assert found["builtin"]["path"] is None
    assert str(home / TINY) in lookalike("list").stdout


# download


def test_download_downloads_checks_unpacks_and_says_what_is_next(offered: Page, site: Site, home: Path) -> None:
    result = lookalike("download", TINY)
    assert result.exit_code == 0
    assert result.stdout == f"{TINY} is in {home / TINY}\nNext: lookalike data check {TINY}\n"
    assert result.stderr == "", "quiet where there is no terminal"
    assert [path.name for path in home.iterdir()] == [TINY]
    assert len(load_dataset(TINY)) == 19
    again = lookalike("download", TINY)
    assert again.exit_code == 0
    assert again.stdout == f"{TINY} is already in {home / TINY}\n"
    assert len(site.requests) == 1


def test_download_into_another_folder(offered: Page, home: Path, tmp_path: Path) -> None:
    result = lookalike("download", TINY, "--into", tmp_path / "other")
    assert result.stdout.splitlines()[-1] == f"Next: lookalike data check {tmp_path / 'other' / TINY}"
    assert not home.exists()
    assert len(load_dataset(tmp_path / "other" / TINY)) == 19
    assert "already in" in lookalike("download", TINY, "--into", tmp_path / "other").stdout


def test_download_takes_a_broken_transfer_up_again(offered: Page, site: Site) -> None:
    offered.cuts = [3000, 2000]
    assert lookalike("download", TINY).exit_code == 0
    assert site.ranges() == ["", "bytes=3000-", "bytes=5000-"]


def test_download_goes_to_the_hub_when_the_official_server_does_not_answer(
    offered: Page, site: Site, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered.statuses = [404]
    monkeypatch.setenv("HF_ENDPOINT", site.address)
    for shard in hugging_face(tmp_path / "copy").iterdir():
        digest = hashlib.sha256(shard.read_bytes()).hexdigest()
        headers = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(shard.stat().st_size)}
        site.pages[f"/datasets/tiny/{shard.name}"] = Page(redirect=f"/storage/{shard.name}", headers=headers)
        site.pages[f"/storage/{shard.name}"] = Page(shard.read_bytes())
    result = lookalike("download", TINY)
    assert result.exit_code == 0
    assert "It has no test images." in result.stdout
    assert [path.name for path in home.iterdir()] == [TINY]
    assert len(load_dataset(TINY)) == 15


def test_download_asks_a_mirror_of_ones_own_first(offered: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/own/sets/tiny-imagenet-200.zip"] = Page(offered.body)
    monkeypatch.setenv("LOOKALIKE_MIRROR", f"{site.address}/own/sets")
    assert lookalike("download", TINY).exit_code == 0
    assert [path for _, path, _ in site.requests] == ["/own/sets/tiny-imagenet-200.zip"]


def test_download_that_nobody_answers_names_each_and_leaves_nothing(
    offered: Page, site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered.statuses = [404]
    monkeypatch.setenv("HF_ENDPOINT", site.address)
    error = lookalike("download", TINY).exception
    assert isinstance(error, DownloadError)
    assert f"{TINY} could not be downloaded. official: 404 Not Found; hub: 404 Not Found." in error.message
    assert "lookalike data import tiny-imagenet-200.zip --name tiny-imagenet" in error.remedy
    assert list(home.iterdir()) == []


def test_download_does_not_take_a_wrong_file(offered: Page, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    offered.body = bytes(len(offered.body))
    error = lookalike("download", TINY).exception
    assert isinstance(error, DownloadError)
    assert "official: what it sent does not have the published MD5" in error.message
    assert list(home.iterdir()) == []


def test_download_needs_nothing_for_builtin_and_for_what_was_imported(home: Path) -> None:
    assert "no download" in lookalike("download", "builtin").stdout
    class_folders(home / "pets")
    result = lookalike("download", "pets")
    assert (result.exit_code, result.stdout) == (0, f"pets is already in {home / 'pets'}\n")


def test_download_of_an_unknown_name_names_the_nearest(home: Path) -> None:
    error = refusal("download", "tinyimagenet")
    assert "Did you mean 'tiny-imagenet'?" in error.message
    assert not home.exists()


def test_download_does_not_write_over_something_else(offered: Page, site: Site, home: Path) -> None:
    (home / TINY).mkdir(parents=True)
    (home / TINY / "mine.txt").write_text("mine")
    assert str(home / TINY) in refusal("download", TINY).message
    assert (home / TINY / "mine.txt").read_text() == "mine"
    assert site.requests == []


def test_download_into_a_place_that_is_none(offered: Page, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot be made" in refusal("download", TINY, "--into", tmp_path / "file").message


GET = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_cli_data import TINY, small_spec
from lookalike.data.registry import DATASETS
DATASETS[TINY] = small_spec(sys.argv[2], Path(sys.argv[3]).read_bytes())
sys.argv = ["lookalike", "data", "download", TINY]
from lookalike.cli.main import run
run()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_download_that_is_stopped_goes_on_where_it_was(
    number: signal.Signals, offered: Page, site: Site, home: Path, tmp_path: Path
) -> None:
    offered.body = bytes(1 << 20) + offered.body  # what stands before a zip is no part of it
    offered.pace = 0.01
    (tmp_path / "body").write_bytes(offered.body)
    command = [sys.executable, "-c", GET, Path(__file__).parent, site.address, tmp_path / "body"]
    partial = home / f".{TINY}.download" / "official" / "tiny-imagenet-200.zip.partial"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (partial.exists() and partial.stat().st_size > 50_000):
            assert process.poll() is None, process.communicate()
        process.send_signal(number)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    if number != signal.SIGKILL:
        assert complaints == "Stopped. The part that arrived is kept; the same command continues with it.\n"
    have = partial.stat().st_size
    assert 50_000 < have < len(offered.body)
    assert [path.name for path in home.iterdir()] == [f".{TINY}.download"], "nothing that looks like a data set"
    offered.pace = 0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert site.ranges() == ["", f"bytes={have}-"]
    assert [path.name for path in home.iterdir()] == [TINY]


def test_download_shows_how_far_it_is_on_a_terminal(offered: Page, site: Site, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="no terminals here")
    import os

    offered.pace = 0.3
    (tmp_path / "body").write_bytes(offered.body)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", GET, Path(__file__).parent, site.address, tmp_path / "body"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert "downloading" in shown.decode()
    assert re.search(r"[\d.]+ kB/[\d.]+ kB", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode()))


# check


def test_check_counts_and_ends_well(tmp_path: Path) -> None:
    result = lookalike("check", class_folders(tmp_path / "pets"))
    assert result.exit_code == 0
    assert "3 classes in a folder" in result.stdout
    report = json.loads(lookalike("check", tmp_path / "pets", "--json").stdout)
    assert report["usable"]
    assert report["counts"]["train"] == {"cat": 3, "dog": 3, "owl": 3}


def test_check_ends_with_bad_input_when_an_image_cannot_be_decoded(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pets")
    (folder / "dog" / "1.jpg").write_bytes(b"no picture")
    result = lookalike("check", folder)
    assert "dog/1.jpg" in result.stdout
    assert isinstance(result.exception, InputError)
    assert f"{folder}: 1 images cannot be decoded" in result.exception.message


def test_check_compares_tiny_imagenet_with_the_official_counts(home: Path) -> None:
    tiny_imagenet(home / TINY)
    result = lookalike("check", TINY)
    assert result.exit_code == 0
    assert "3 classes with images, not 200" in result.stdout
    assert "train: 9 images, not 100,000" in result.stdout


# import


def test_import_makes_a_set_that_every_command_knows_by_name(home: Path, tmp_path: Path) -> None:
    result = lookalike("import", class_folders(tmp_path / "my pets"), "--name", "pets")
    assert result.stdout == f"pets is in {home / 'pets'}\nNext: lookalike data check pets\n"
    assert lookalike("check", "pets").exit_code == 0
    assert len(load_dataset("pets")) == 12


def test_import_of_the_official_zip_is_what_get_would_have_made(home: Path, tmp_path: Path) -> None:
    official = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    path = zip_of(official, tmp_path / "tiny-imagenet-200.zip", "tiny-imagenet-200/")
    assert lookalike("import", path, "--name", TINY).exit_code == 0
    assert "already in" in lookalike("download", TINY).stdout
    assert len(load_dataset(TINY)) == 19


def test_import_into_another_folder_names_the_path(home: Path, tmp_path: Path) -> None:
    result = lookalike("import", class_folders(tmp_path / "pets"), "--name", "pets", "--into", tmp_path / "other")
    assert result.stdout.splitlines()[-1] == f"Next: lookalike data check {tmp_path / 'other' / 'pets'}"
    assert not home.exists()


def test_import_refuses_in_one_line(home: Path, tmp_path: Path) -> None:
    assert "neither a folder nor a zip" in refusal("import", __file__, "--name", "pets").message
    assert "cannot name a data set" in refusal("import", tmp_path, "--name", "a/b").message
    assert not home.exists() or list(home.iterdir()) == []


# preview


def test_preview_writes_a_page_of_pictures(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = lookalike("preview", class_folders(tmp_path / "pets"), "--out", out, "--per-class", "2", "--class", "dog")
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    with Image.open(out) as picture:
        assert picture.width > 8
    assert "'trian'" in refusal("preview", tmp_path / "pets", "--out", out, "--split", "trian").message
