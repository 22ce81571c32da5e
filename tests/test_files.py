"""Half-made folders: swept when they are old, and only they."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from lookalike.files import DAY, half_made, sweep


def test_only_old_folders_of_the_pattern_are_swept(tmp_path: Path) -> None:
    now = time.time()
    for name, age in ((".old.partial", DAY + 60), (".young.partial", DAY - 60), ("old", DAY + 60)):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "picture.png").write_bytes(b"picture")
        os.utime(tmp_path / name, (now - age, now - age))
    (tmp_path / ".file.partial").write_bytes(b"a file")
    os.utime(tmp_path / ".file.partial", (now - DAY - 60,) * 2)
    sweep(tmp_path, ".*.partial")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.partial", ".young.partial", "old"]
    assert (tmp_path / "old" / "inside" / "picture.png").read_bytes() == b"picture"


def test_a_folder_that_is_not_there_has_nothing_to_sweep(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere", "*")
    assert not list(tmp_path.iterdir())


def test_a_half_made_folder_is_gone_at_the_end_unless_it_was_renamed(tmp_path: Path) -> None:
    place = tmp_path / "new [1]" / "set"
    with half_made(place, "importing") as beside:
        (beside / "file").write_bytes(b"1")
        assert beside.parent == place.parent
    assert not list(place.parent.iterdir())
    with half_made(place, "importing") as beside:
        (beside / "file").write_bytes(b"1")
        beside.rename(place)
    assert [path.name for path in place.parent.iterdir()] == ["set"]


HOLD = """
import sys, time
from pathlib import Path
from lookalike.files import half_made
with half_made(Path(sys.argv[1]), "importing") as beside:
    (beside / "file").write_bytes(b"1")
    print(beside, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_swept_at_the_next_start_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "set [1]"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with half_made(place, "importing"):
            assert (theirs / "file").is_file()  # it still works
        other.kill()
    assert (theirs / "file").is_file()
    with half_made(place, "importing") as beside:
        assert list(tmp_path.iterdir()) == [beside]
