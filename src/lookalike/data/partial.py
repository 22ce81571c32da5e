"""What killed processes leave behind: half-made folders, hidden beside the place they were meant for."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

DAY = 86_400.0  # seconds; a younger one may belong to a process that still works


def sweep(folder: Path, pattern: str) -> None:
    """Remove the folders in `folder` that match a glob pattern and have not changed for a day."""
    for left in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process sweeps too
            if left.is_dir() and time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
