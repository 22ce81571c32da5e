"""Small runs on the built-in pictures, fast enough to be repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike.data import synthetic
from lookalike.data.catalog import Catalog
from lookalike.data.pack import Pack, pack


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Ten training and three validation pictures of each of 24 classes, 32 pixels."""
    cache = tmp_path_factory.mktemp("pictures")
    return synthetic.catalog(size=32, train_per_class=10, val_per_class=3, test_per_class=0, cache=cache)


@pytest.fixture(scope="session")
def packs(pictures: Catalog, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pack, Pack]:
    """The training and the validation pack."""
    cache = tmp_path_factory.mktemp("packs")
    training, validation = (pack(pictures.select(pictures.rows_of(s)), 32, cache=cache) for s in ("train", "val"))
    return training, validation


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for runs."""
    return tmp_path / "runs"
