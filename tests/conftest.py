"""What every test may ask for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("lookalike", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lookalike")


def pytest_configure() -> None:
    """Let Ctrl-C reach the programs that tests start: a shell in the background has it ignored, and so would they."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds `tiny-imagenet-200/` with real images, from LOOKALIKE_REAL_DATA."""
    folder = os.environ.get("LOOKALIKE_REAL_DATA")
    if not folder:
        pytest.skip("needs real images: set LOOKALIKE_REAL_DATA to a folder that holds tiny-imagenet-200/")
    path = Path(folder)
    assert (path / "tiny-imagenet-200").is_dir(), f"LOOKALIKE_REAL_DATA={folder} holds no tiny-imagenet-200/"
    return path
