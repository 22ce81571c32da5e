"""Unpacking: what comes out of a good zip, and that nothing comes out of a bad one."""

from __future__ import annotations

import random
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.data.unpack import ZipLimits, unpack_zip
from lookalike.errors import InputError

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outside.txt").write_text("untouched")
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def make(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


def noise(size: int) -> bytes:
    return random.Random(0).randbytes(size)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_files_come_out_as_they_went_in(how: int, target: Path) -> None:
    files = {"a/b/1.jpg": noise(3 * MIB), "a/2.txt": b"", "ü ö/3.png": b"three"}
    path = make(target.parent / "good.zip", ("a/", b""), *files.items(), how=how)
    seen: list[tuple[int, int]] = []
    unpack_zip(path, target, progress=lambda done, total: seen.append((done, total)))
    assert contents(target) == files
    assert seen == [(3, 3)]


def test_files_can_be_chosen_and_placed(target: Path) -> None:
    path = make(target.parent / "good.zip", ("top/a/1.jpg", b"one"), ("top/readme", b"no"), ("top/b/2.jpg", b"two"))
    unpack_zip(path, target, places={"top/a/1.jpg": "a/1.jpg", "top/b/2.jpg": "b/2.jpg"})
    assert contents(target) == {"a/1.jpg": b"one", "b/2.jpg": b"two"}


def special(mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a/special")
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    return info


def cut(path: Path, keep: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    return path


def flipped(path: Path) -> Path:
    """One byte changed in the middle of the file's contents."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


def encrypted(path: Path) -> Path:
    """The flag that says so, set in both headers."""
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


def understated(path: Path) -> Path:
    """A member that claims to be of one byte in the table of contents, and is much larger."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1)
    path.write_bytes(data)
    return path


def misplaced(path: Path) -> Path:
    """A member that begins where there is nothing."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 42 : at + 46] = struct.pack("<I", 5)
    path.write_bytes(data)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def twice(path: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return make(path, ("a/1", b"one"), ("a/1", b"two"))


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "ends early": (lambda path: cut(make(path, ("a/1", noise(5000))), 0.6), "ends early or is damaged"),
    "no zip": (lambda path: written(path, b"hello"), "neither a folder nor a zip"),
    "missing": (lambda path: path, "cannot be opened"),
    "one byte changed": (lambda path: flipped(make(path, ("ok", b"1"), ("a/1", noise(5000)))), "'a/1' is damaged"),
    "encrypted": (lambda path: encrypted(make(path, ("a/1", b"secret"))), "'a/1' is damaged .*encrypted"),
    "size understated": (lambda path: understated(make(path, ("a/1", noise(5000)))), "'a/1' is damaged"),
    "place misstated": (lambda path: misplaced(make(path, ("a/1", noise(5000)))), "'a/1' is damaged"),
    "above": (lambda path: make(path, ("ok", b"1"), ("../outside.txt", b"x")), "leads out of the zip"),
    "above, from within": (lambda path: make(path, ("a/../../outside.txt", b"x")), "leads out of the zip"),
    "absolute": (lambda path: make(path, ("/tmp/x", b"x")), "'/tmp/x' leads out of the zip"),
    "with a drive": (lambda path: make(path, ("C:/x", b"x")), "'C:/x' leads out of the zip"),
    "with backslashes": (lambda path: make(path, ("..\\outside.txt", b"x")), "leads out of the zip"),
    "link": (
        lambda path: make(path, ("ok", b"1"), (special(stat.S_IFLNK), b"../outside.txt")),
        "a link or a device",
    ),
    "device": (lambda path: make(path, (special(stat.S_IFCHR), b"")), "a link or a device"),
    "pipe": (lambda path: make(path, (special(stat.S_IFIFO), b"")), "a link or a device"),
    "twice": (twice, "'a/1' stands 2 times"),
    "file and folder": (lambda path: make(path, ("a", b"1"), ("a/1", b"2")), "'a/1' has the same place as another"),
    "folder and file": (lambda path: make(path, ("a/1", b"2"), ("a", b"1")), "'a' has the same place as another"),
    "too many files": (lambda path: make(path, *((f"{n}", b"") for n in range(101))), "101 files, more than 100"),
    "too large": (lambda path: make(path, ("a", noise(9 * MIB)), how=zipfile.ZIP_STORED), "MiB would come out"),
    "bomb": (lambda path: make(path, ("a", bytes(2 * MIB))), "MiB would come out"),
}
LIMITS = ZipLimits(files=100, size_bytes=8 * MIB, ratio=50, small_bytes=64 * KIB)


@pytest.mark.parametrize(("build", "reason"), BAD.values(), ids=BAD)
def test_nothing_comes_out_of_a_bad_zip(build: Callable[[Path], Path], reason: str, target: Path) -> None:
    path = build(target.parent / "bad.zip")
    with pytest.raises(InputError, match=rf"bad\.zip: .*{reason}") as caught:
        unpack_zip(path, target, limits=LIMITS)
    assert caught.value.remedy
    assert list(target.iterdir()) == []
    assert (target.parent / "outside.txt").read_text() == "untouched"
    assert sorted(child.name for child in target.parent.iterdir() if child != path) == ["outside.txt", "target"]


def overlapping(path: Path, members: int, size: int) -> Path:
    """A zip whose members are all the same bytes of it: its table of contents lists one file many times over."""
    make(path, ("0", bytes(size)))
    data = path.read_bytes()
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry, tail = data[at:end], bytearray(data[end:])
    names = [entry[:46] + f"{number}".encode().rjust(1) + entry[47:] for number in range(members)]
    tail[8:12] = struct.pack("<HH", members, members)
    tail[12:16] = struct.pack("<I", sum(map(len, names)))
    path.write_bytes(data[:at] + b"".join(names) + bytes(tail))
    return path


def test_what_comes_out_is_counted_whatever_the_table_of_contents_says(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(target.parent / "bomb.zip", *((f"{number}", bytes(MIB)) for number in range(5)))
    real = zipfile.ZipFile.getinfo

    def lying(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
        """The header that is looked at beforehand; the one that is read by is another object, and true."""
        info = zipfile.ZipInfo(name)
        info.file_size = 1
        info.external_attr = real(archive, name).external_attr
        return info

    opened: list[str] = []
    real_open = zipfile.ZipFile.open

    def watched(archive: zipfile.ZipFile, name: str) -> object:
        opened.append(name)
        return real_open(archive, archive.infolist()[int(name)])

    monkeypatch.setattr(zipfile.ZipFile, "getinfo", lying)
    monkeypatch.setattr(zipfile.ZipFile, "open", watched)
    with pytest.raises(InputError, match="more comes out of it than"):
        unpack_zip(path, target, limits=ZipLimits(small_bytes=MIB + 1, ratio=1))
    assert opened == ["0", "1"], "it stopped in the second of five"
    assert list(target.iterdir()) == []


def test_members_that_share_their_bytes_are_counted_each(target: Path) -> None:
    path = overlapping(target.parent / "quine.zip", members=9, size=MIB)
    with pytest.raises(InputError, match="MiB would come out of it"):
        unpack_zip(path, target, limits=ZipLimits(small_bytes=5 * MIB))
    assert list(target.iterdir()) == []


def test_small_zips_may_shrink_well(target: Path) -> None:
    path = make(target.parent / "lists.zip", ("words.txt", b"n01443537\tgoldfish\n" * 10_000))
    assert path.stat().st_size * 50 < 190_000
    unpack_zip(path, target)
    assert (target / "words.txt").stat().st_size == 190_000


def test_the_limits_leave_room_for_real_sets() -> None:
    tiny_imagenet = 248_100_043
    assert ZipLimits().allowed(tiny_imagenet) > 10 * tiny_imagenet
    assert ZipLimits().allowed(500 << 30) == ZipLimits().size_bytes
    assert ZipLimits().allowed(1) == ZipLimits().small_bytes


def test_no_room_is_said_beforehand(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(target.parent / "good.zip", ("a", noise(5000)))
    real = shutil.disk_usage(target)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=4999))
    with pytest.raises(InputError, match="0 MiB are needed, 0 MiB are free"):
        unpack_zip(path, target)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=5000))
    unpack_zip(path, target)


def test_a_disk_that_is_full_halfway_leaves_nothing(target: Path) -> None:
    path = make(target.parent / "good.zip", ("a/small", b"small"), ("a/large", noise(5000)))
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom lookalike.data.unpack import unpack_zip\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "unpack_zip(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, path, target], capture_output=True, text=True, check=False)
    complaint = done.stderr.splitlines()[-1]
    assert f"InputError: {target}/a/large: cannot be written (File too large)." in complaint
    assert list(target.iterdir()) == []


def test_an_interruption_leaves_nothing(target: Path) -> None:
    path = make(target.parent / "good.zip", *((f"{number}", b"x") for number in range(501)))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_zip(path, target, progress=stop)
    assert list(target.iterdir()) == []


PART = st.text("ab.:\\/ ü~", min_size=1, max_size=6)


@given(names=st.lists(st.lists(PART, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4, unique=True))
def test_no_name_whatever_leads_out(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    parent = tmp_path_factory.mktemp("names")
    target = parent / "deep" / "down" / "target"
    target.mkdir(parents=True)
    path = make(parent / "any.zip", *((name, b"x") for name in names))
    try:
        unpack_zip(path, target)
    except InputError:
        assert list(target.iterdir()) == []
    assert [file for file in parent.rglob("*") if file.is_file() and target not in file.parents] == [path]
