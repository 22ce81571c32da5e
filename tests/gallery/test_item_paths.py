"""Which rows lie below a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike.gallery.item_paths import is_at, is_below


def test_below_a_folder_a_zip_or_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = f"{tmp_path}/photos/cat/1.png"
    for above in ("photos", "photos/", "./photos/cat", "cat/../photos", f"{tmp_path}/photos", str(tmp_path), "/"):
        assert is_below(inside, above), above
    for other in ("photo", "photos/ca", "photos/dog", "cat", ""):
        assert not is_below(inside, other), other
    assert is_below(f"{tmp_path}/a.zip/x/1.png", "a.zip")
    assert is_below(f"{tmp_path}/a.parquet#12", "a.parquet")
    assert not is_below(f"{tmp_path}/photos#1/1.png", "photos")
    assert is_below("s3://bucket/photos/1.png", "s3://bucket/photos")
    assert is_at(inside, "photos/cat/1.png")
    assert not is_below(inside, inside)
