"""Downloads from a real server on this machine: what breaks is resumed, what is wrong is thrown away."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty_server import Page, Site, serving
from lookalike.data import download as downloads
from lookalike.data.download import download, hold
from lookalike.data.spec import HUB, Mirror, RemoteFile
from lookalike.errors import DownloadError, InputError

BODY = bytes(range(256)) * 2048  # 512 KiB
OTHER = bytes(reversed(BODY))


def checksum(data: bytes, kind: str = "md5") -> str:
    return f"{kind}:{hashlib.new(kind, data).hexdigest()}"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "LOOKALIKE_MIRROR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


def source(*urls: str, data: bytes = BODY, size: int | None = len(BODY)) -> tuple[Mirror, ...]:
    """A data set of one file, `set.zip`, with a mirror at each address: one, two, three."""
    names = ("one", "two", "three")
    mirrors = [
        Mirror(name, (RemoteFile("set.zip", url, checksum(data), size),))
        for name, url in zip(names, urls, strict=False)
    ]
    return tuple(mirrors)


def get(of: tuple[Mirror, ...], folder: Path, **options: float) -> bytes:
    mirror, place = download("set", of, folder, **{"pause": 0.0, **options})  # type: ignore[arg-type]
    left = sorted(path.name for path in place.iterdir())
    assert left == sorted(file.name for file in mirror.files), "nothing else is left"
    return (place / "set.zip").read_bytes()


def interrupt(site: Site, of: tuple[Mirror, ...], folder: Path, at: int) -> Path:
    """A download that was stopped at `at` bytes, as by Ctrl-C; the partial file."""

    def stop(done: int, total: int | None) -> None:
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download("set", of, folder, progress=stop, pause=0.0)
    site.requests.clear()
    partial = folder / "one" / "set.zip.partial"
    assert at <= partial.stat().st_size < len(BODY)
    return partial


def test_a_file_arrives_whole_and_says_how_far_it_is(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    seen: list[tuple[int, int | None]] = []
    of = source(f"{site.address}/set.zip")
    _, place = download("set", of, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert (place / "set.zip").read_bytes() == BODY
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY))
    assert site.requests[0][2]["accept-encoding"] == "identity", "a zip that is packed again has another length"
    assert site.requests[0][2]["user-agent"].startswith("lookalike/")


def test_what_is_there_is_not_fetched_again_unless_it_was_damaged(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    of = source(f"{site.address}/set.zip")
    get(of, tmp_path)
    get(of, tmp_path)
    assert len(site.requests) == 1
    (tmp_path / "one" / "set.zip").write_bytes(OTHER)
    assert get(of, tmp_path) == BODY
    assert len(site.requests) == 2


def test_a_broken_connection_is_taken_up_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY, cuts=[100_000])
    assert get(source(f"{site.address}/set.zip"), tmp_path) == BODY
    assert site.ranges() == ["", "bytes=100000-"]
    assert site.requests[1][2]["if-range"] == '"one"'


def test_a_connection_may_break_often_as_long_as_something_arrives(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY, cuts=[50_000] * 9)
    assert get(source(f"{site.address}/set.zip"), tmp_path) == BODY
    assert len(site.requests) == 10 > downloads.MAX_TRIES


def test_a_connection_that_brings_nothing_new_is_given_up(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY, cuts=[50_000, *[0] * 20])
    with pytest.raises(DownloadError, match="one: peer closed connection"):
        get(source(f"{site.address}/set.zip"), tmp_path)
    assert len(site.requests) == 1 + downloads.MAX_TRIES


def test_a_stopped_download_goes_on_in_the_next_call(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    of = source(f"{site.address}/set.zip")
    partial = interrupt(site, of, tmp_path, 200_000)
    have = partial.stat().st_size
    assert get(of, tmp_path) == BODY
    assert site.ranges() == [f"bytes={have}-"]


def test_a_stopped_download_that_was_complete_is_only_checked(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    of = source(f"{site.address}/set.zip")
    interrupt(site, of, tmp_path, 200_000).write_bytes(BODY)
    assert get(of, tmp_path) == BODY
    assert site.requests == []


def test_last_modified_stands_in_for_a_weak_etag(site: Site, tmp_path: Path) -> None:
    date = "Mon, 15 Sep 2025 10:00:00 GMT"
    site.pages["/set.zip"] = Page(BODY, etag='W/"weak"', date=date, cuts=[100_000])
    assert get(source(f"{site.address}/set.zip"), tmp_path) == BODY
    assert site.ranges() == ["", "bytes=100000-"]
    assert site.requests[1][2]["if-range"] == date


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_sign_of_the_version_it_starts_over(etag: str, site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY, etag=etag, cuts=[100_000])
    assert get(source(f"{site.address}/set.zip"), tmp_path) == BODY
    assert site.ranges() == ["", ""]


def test_a_server_that_ignores_range_starts_over(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY, ranges=False, cuts=[100_000])
    assert get(source(f"{site.address}/set.zip"), tmp_path) == BODY
    assert site.ranges() == ["", "bytes=100000-"]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    interrupt(site, source(f"{site.address}/set.zip"), tmp_path, 200_000)
    site.pages["/set.zip"] = Page(OTHER, etag='"two"')
    assert get(source(f"{site.address}/set.zip", data=OTHER), tmp_path) == OTHER
    assert len(site.requests) == 1, "a server that minds If-Range sends the whole at once"


@pytest.mark.parametrize(
    "page",
    [Page(OTHER, etag='"two"'), Page(OTHER + OTHER), Page(OTHER, part_at=7), Page(OTHER, statuses=[206])],
    ids=["other tag", "other length", "other place", "no place named"],
)
def test_a_part_that_is_not_the_one_asked_for_is_not_joined_to_what_is_there(
    page: Page, site: Site, tmp_path: Path
) -> None:
    site.pages["/set.zip"] = Page(BODY)
    interrupt(site, source(f"{site.address}/set.zip"), tmp_path, 200_000)
    page.minds_if_range = False
    site.pages["/set.zip"] = page
    of = source(f"{site.address}/set.zip", data=page.body, size=len(page.body))
    seen: list[int] = []
    _, place = download("set", of, tmp_path, pause=0.0, progress=lambda done, total: seen.append(done))
    assert (place / "set.zip").read_bytes() == page.body
    assert [bool(asked) for asked in site.ranges()] == [True, False]
    assert seen == sorted(seen), "not a byte of that part was written"


def test_a_rest_that_is_not_there_starts_over(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    of = source(f"{site.address}/set.zip")
    partial = interrupt(site, of, tmp_path, 200_000)
    partial.write_bytes(BODY + b"more than there is")
    assert get(of, tmp_path) == BODY
    assert site.ranges() == [f"bytes={len(BODY) + 18}-", ""]


@pytest.mark.parametrize("notes", ["", "no json", "[]", "{}", '{"url": "", "etag": "x", "date": "", "size": 5}'])
def test_a_partial_file_of_unknown_origin_is_not_used(notes: str, site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    of = source(f"{site.address}/set.zip")
    partial = interrupt(site, of, tmp_path, 200_000)
    partial.with_name("set.zip.partial.json").write_text(notes)
    assert get(of, tmp_path) == BODY
    assert site.ranges() == [""]


def test_a_partial_file_that_was_damaged_is_fetched_anew_from_the_same_mirror(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    of = source(f"{site.address}/set.zip")
    partial = interrupt(site, of, tmp_path, 200_000)
    have = partial.stat().st_size
    partial.write_bytes(b"x" * have)
    assert get(of, tmp_path) == BODY
    assert site.ranges() == [f"bytes={have}-", ""]


def test_a_wrong_checksum_throws_away_and_goes_to_the_next_mirror(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/a/set.zip": Page(OTHER), "/b/set.zip": Page(BODY)}
    mirror, place = download("set", source(f"{site.address}/a/set.zip", f"{site.address}/b/set.zip"), tmp_path)
    assert (mirror.name, (place / "set.zip").read_bytes()) == ("two", BODY)
    assert list((tmp_path / "one").iterdir()) == []


def test_wrong_bytes_behind_a_flaky_line_come_to_an_end(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(OTHER, cuts=[300_000, 400_000] * 50)
    with pytest.raises(DownloadError, match="one: "):
        get(source(f"{site.address}/set.zip"), tmp_path)
    assert len(site.requests) < 10


def test_every_mirror_is_named_with_its_reason_and_the_way_out(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/b/set.zip": Page(OTHER), "/c/set.zip": Page(BODY, statuses=[403])}
    urls = [f"{site.address}/{folder}/set.zip" for folder in "abc"]
    with pytest.raises(DownloadError) as caught:
        download("set", source(*urls), tmp_path)
    assert caught.value.exit_code == 1
    assert caught.value.message == (
        "set could not be downloaded. one: 404 Not Found; two: what it sent does not have the published MD5; "
        "three: 403 Forbidden."
    )
    assert "lookalike data import set.zip --name set" in caught.value.remedy
    assert urls[0] in caught.value.remedy


def test_a_busy_server_is_asked_again_with_growing_pauses(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    site.pages["/set.zip"] = Page(BODY, statuses=[503, 429])
    assert get(source(f"{site.address}/set.zip"), tmp_path, pause=1.0) == BODY
    assert pauses == [1, 2]
    site.pages["/set.zip"] = Page(BODY, statuses=[503] * 9)
    with pytest.raises(DownloadError, match="one: 503 Service Unavailable"):
        get(source(f"{site.address}/set.zip"), tmp_path / "again", pause=1.0)


def test_redirections_are_followed_but_not_in_circles(site: Site, tmp_path: Path) -> None:
    site.pages |= {
        "/set.zip": Page(redirect="/store/set.zip"),
        "/store/set.zip": Page(BODY, cuts=[100_000]),
        "/round/set.zip": Page(redirect="/round/set.zip"),
    }
    assert get(source(f"{site.address}/set.zip"), tmp_path) == BODY
    assert site.ranges() == ["", "", "bytes=100000-", "bytes=100000-"]
    with pytest.raises(DownloadError, match="one: Exceeded maximum allowed redirects"):
        get(source(f"{site.address}/round/set.zip"), tmp_path / "round")


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_another_length_than_the_published_one_is_refused_before_anything_is_fetched(
    size: int, site: Site, tmp_path: Path
) -> None:
    site.pages["/set.zip"] = Page(BODY)
    with pytest.raises(DownloadError, match=rf"one: it has 524,288 bytes where {size:,} were published"):
        get(source(f"{site.address}/set.zip", size=size), tmp_path)
    assert list((tmp_path / "one").iterdir()) == []


def test_a_length_that_is_a_lie_does_not_make_half_a_file_whole(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY, length=1000)
    with pytest.raises(DownloadError, match="one: what it sent does not have the published MD5"):
        get(source(f"{site.address}/set.zip", size=None), tmp_path)
    assert list((tmp_path / "one").iterdir()) == []


def test_a_length_beyond_the_end_is_found_out_by_asking_for_the_rest(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY, length=len(BODY) + 1000)
    assert get(source(f"{site.address}/set.zip", size=None), tmp_path) == BODY
    assert site.ranges() == ["", f"bytes={len(BODY)}-"]


def test_a_server_may_send_no_length(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY, length=-1)
    assert get(source(f"{site.address}/set.zip", size=None), tmp_path) == BODY
    site.pages["/set.zip"] = Page(BODY, length=-1, cuts=[100_000])
    assert get(source(f"{site.address}/set.zip"), tmp_path / "cut") == BODY, "the published size tells the end"
    site.pages["/set.zip"] = Page(BODY + b"more", length=-1)
    with pytest.raises(DownloadError, match=r"524,292 of 524,288 bytes|does not have the published MD5"):
        get(source(f"{site.address}/set.zip"), tmp_path / "more")
    assert list((tmp_path / "more" / "one").iterdir()) == []


def test_a_server_that_falls_silent_is_left(site: Site, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        site.pages["/set.zip"] = Page(BODY)
        of = source(f"http://127.0.0.1:{silent.getsockname()[1]}/set.zip", f"{site.address}/set.zip")
        mirror, _ = download("set", of, tmp_path, pause=0.0, timeout=0.1)
    assert mirror.name == "two"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/set.zip", "Connection refused"),
        ("/some/folder/set.zip", "missing an 'http://' or 'https://' protocol"),
        ("http://host:port/set.zip", "Invalid port"),
    ],
)
def test_an_address_that_leads_nowhere(url: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"one: .*{reason}"):
        get(source(url), tmp_path)


# The Hugging Face Hub: it announces size and SHA-256, and leads on to a storage of its own.


def on_the_hub(site: Site, monkeypatch: pytest.MonkeyPatch, *names: str) -> tuple[Mirror, ...]:
    monkeypatch.setenv("HF_ENDPOINT", site.address)
    for name in names:
        body = BODY + name.encode()
        announced = {
            "X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Linked-Size": str(len(body)),
            "ETag": '"of the answer"',
        }
        site.pages[f"/datasets/old/{name}"] = Page(redirect=f"/datasets/new/{name}")
        site.pages[f"/datasets/new/{name}"] = Page(redirect=f"/storage/{name}", headers=announced)
        site.pages[f"/storage/{name}"] = Page(body, etag='"of the storage"')
    files = tuple(RemoteFile(name, f"{HUB}/datasets/old/{name}") for name in names)
    return (Mirror("hub", files),)


def test_files_on_the_hub_are_held_to_what_it_announces(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = on_the_hub(site, monkeypatch, "train.parquet", "val.parquet")
    site.pages["/storage/train.parquet"].cuts = [100_000]
    seen: list[tuple[int, int | None]] = []
    _, place = download("set", of, tmp_path, pause=0.0, progress=lambda done, total: seen.append((done, total)))
    for name in ("train.parquet", "val.parquet"):
        assert (place / name).read_bytes() == BODY + name.encode()
    total = 2 * len(BODY) + len("train.parquet") + len("val.parquet")
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    heads = [path for method, path, _ in site.requests if method == "HEAD"]
    assert not any(path.startswith("/storage") for path in heads)


def test_a_file_that_is_not_what_the_hub_announced_is_thrown_away(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = on_the_hub(site, monkeypatch, "train.parquet")
    page = site.pages["/storage/train.parquet"]
    page.body = b"x" * len(page.body)
    with pytest.raises(DownloadError, match="hub: what it sent does not have the published SHA256"):
        download("set", of, tmp_path, pause=0.0)
    assert list((tmp_path / "hub").iterdir()) == []


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page(BODY), "no SHA-256 is announced for train.parquet"),
        (Page(redirect="/datasets/old/train.parquet"), "no SHA-256 is announced for train.parquet"),
        (Page(statuses=[401] * 9), "401 Unauthorized"),
        (Page(statuses=[500] * 9), "500 Internal Server Error"),
    ],
)
def test_a_hub_that_announces_nothing_is_not_trusted(
    page: Page, reason: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = on_the_hub(site, monkeypatch, "train.parquet")
    site.pages["/datasets/old/train.parquet"] = page
    with pytest.raises(DownloadError, match=f"hub: {reason}"):
        download("set", of, tmp_path, pause=0.0)


# Proxies, room, two at once.


def test_a_proxy_is_asked_where_one_is_set(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/set.zip"] = Page(BODY)
    monkeypatch.setenv("HTTP_PROXY", site.address)
    monkeypatch.setenv("http_proxy", site.address)
    assert get(source("http://nowhere.invalid/set.zip"), tmp_path) == BODY
    assert site.requests[0][1] == "http://nowhere.invalid/set.zip"


def test_a_proxy_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://proxy")
    monkeypatch.setenv("http_proxy", "nonsense://proxy")
    with pytest.raises(InputError, match=r"the proxy that is set cannot be used.*Correct HTTP_PROXY"):
        get(source("http://nowhere.invalid/set.zip"), tmp_path)


def test_no_room_is_said_before_anything_is_fetched(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/set.zip"] = Page(BODY)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    with pytest.raises(InputError, match="MiB are to come, 0 MiB are free"):
        get(source(f"{site.address}/set.zip"), tmp_path)


LIMITED = """
import resource, sys
from pathlib import Path
from lookalike.data.download import download
from lookalike.data.spec import Mirror, RemoteFile
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
url, checksum, size, folder = sys.argv[1:]
mirrors = (Mirror("one", (RemoteFile("set.zip", url, checksum, int(size)),)),)
download("set", mirrors, Path(folder))
"""


def test_a_disk_that_is_full_halfway_keeps_what_arrived(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    url = f"{site.address}/set.zip"
    command = [sys.executable, "-c", LIMITED, url, checksum(BODY), str(len(BODY)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaint = done.stderr.splitlines()[-1]
    assert "InputError" in complaint
    assert f"{tmp_path / 'one'}: cannot be written (File too large)." in complaint
    assert (tmp_path / "one" / "set.zip.partial").stat().st_size == 200_000
    assert get(source(url), tmp_path) == BODY
    assert site.ranges() == ["", "bytes=200000-"]


def test_a_folder_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file.*cannot be written"):
        get(source(f"{site.address}/set.zip"), tmp_path / "file")
    with pytest.raises(InputError, match=r"file.*cannot be made"), hold(tmp_path / "file"):
        pass


def test_two_downloads_do_not_write_into_each_other(tmp_path: Path) -> None:
    with hold(tmp_path / "arriving"):
        with pytest.raises(InputError, match="arriving"), hold(tmp_path / "arriving"):
            pass
        assert (tmp_path / "arriving").is_dir()
    assert not (tmp_path / "arriving").exists(), "nothing arrived"
    with hold(tmp_path / "arriving"):
        (tmp_path / "arriving" / "file").write_text("something did")
    assert (tmp_path / "arriving" / "file").exists()


def test_the_notes_are_what_a_person_can_read(site: Site, tmp_path: Path) -> None:
    site.pages["/set.zip"] = Page(BODY)
    partial = interrupt(site, source(f"{site.address}/set.zip"), tmp_path, 1)
    assert json.loads(partial.with_name("set.zip.partial.json").read_text()) == {
        "url": f"{site.address}/set.zip",
        "etag": '"one"',
        "date": "",
        "size": len(BODY),
    }
