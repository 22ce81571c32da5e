"""Files and folders are written complete or not at all, and what killed processes leave is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lookalike.errors import InputError
from lookalike.files import DAY, atomic_file, atomic_folder, atomic_write, partial_path, sweep


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("content", ["naïve\r\n", b"\xff\x00", memoryview(b"view")])
def test_a_file_is_written_and_replaced(tmp_path: Path, content: str | bytes | memoryview, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_text("former")
    atomic_write(path, content, durable=durable)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else bytes(content))
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_that_raises_leaves_the_former_file(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "file.txt"
    path.write_text("former")
    with suppress(KeyboardInterrupt), atomic_file(path, shared=shared) as partial:
        partial.write_text("half")
        assert path.read_text() == "former"
        raise KeyboardInterrupt
    assert path.read_text() == "former"
    assert names(tmp_path) == ["file.txt"]


def test_several_processes_write_to_files_of_their_own(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "model.onnx", shared=True) as partial:
        assert str(os.getpid()) in partial.name
        assert partial.suffix == ".onnx"
        partial.write_bytes(b"1")
    assert names(tmp_path) == ["model.onnx"]


def test_what_a_killed_process_left_of_a_file_is_replaced(tmp_path: Path) -> None:
    partial_path(tmp_path / "file").write_text("half of something longer")
    atomic_write(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("path", ["no/file", "folder", "other/file"])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").write_text("a file")
    with pytest.raises(InputError, match=f"{path}: ") as caught:
        atomic_write(tmp_path / path, "text", remedy="Look elsewhere.")
    assert caught.value.remedy == "Look elsewhere."
    assert names(tmp_path) == ["folder", "other"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full")
def test_on_a_full_disk_the_former_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("former")
    partial_path(path).symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"file: .*No space left") as caught:
        atomic_write(path, "new")
    assert "Free" in caught.value.remedy
    assert path.read_text() == "former"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_is_complete_or_absent(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new [1]" / "set"
    with suppress(KeyboardInterrupt), atomic_folder(path) as partial:
        (partial / "file").write_bytes(b"1")
        assert partial.parent == path.parent
        raise KeyboardInterrupt
    assert names(path.parent) == []
    with atomic_folder(path, durable=durable) as partial:
        (partial / "file").write_bytes(b"1")
    assert names(path.parent) == ["set"]
    assert names(path) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.mkdir()
    with atomic_folder(path) as partial:
        (partial / "file").write_bytes(b"1")
    with pytest.raises(InputError, match=f"{path}: already exists"), atomic_folder(path) as partial:
        (partial / "other").write_bytes(b"2")
    assert names(path) == ["file"]
    assert names(tmp_path) == ["set"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path / 'file' / 'set'}: "), atomic_folder(tmp_path / "file" / "set"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from lookalike.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as partial:
    (partial / "file").write_bytes(b"1")
    print(partial, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks on folders")
def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "set [1]"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with suppress(KeyboardInterrupt), atomic_folder(path):
            assert (theirs / "file").is_file()
            raise KeyboardInterrupt
        other.kill()
    assert (theirs / "file").is_file()
    with atomic_folder(path) as partial:
        assert list(tmp_path.iterdir()) == [partial]


def test_only_old_folders_of_the_pattern_are_swept(tmp_path: Path) -> None:
    now = time.time()
    for name, age in ((".old.partial", DAY + 60), (".young.partial", DAY - 60), ("old", DAY + 60)):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "image.png").write_bytes(b"image")
        os.utime(tmp_path / name, (now - age, now - age))
    (tmp_path / ".file.partial").write_bytes(b"a file")
    os.utime(tmp_path / ".file.partial", (now - DAY - 60,) * 2)
    sweep(tmp_path, ".*.partial")
    assert names(tmp_path) == [".file.partial", ".young.partial", "old"]
    assert (tmp_path / "old" / "inside" / "image.png").read_bytes() == b"image"


def test_sweeping_a_folder_that_does_not_exist_does_nothing(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere", "*")
    assert names(tmp_path) == []
