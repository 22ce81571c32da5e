"""Half-made folders: swept when they are old, and only they."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lookalike.data.partial import DAY, sweep


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
