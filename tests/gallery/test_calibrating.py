"""A gallery's own threshold: against every pair, by what it lets through, and where there are too few labels."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import InputError
from lookalike.gallery import calibration
from lookalike.gallery.calibration import calibrate
from lookalike.gallery.store.base import GalleryInfo, NewItem
from lookalike.gallery.store.sqlite import SqliteStore
from small_gallery import rows

DIM = 16
ABOUT = GalleryInfo("f" * 64, DIM, threshold=0.1, data="other pictures")


def labelled(sizes: list[int], *, unlabelled: int = 0) -> list[NewItem]:
    """Rows of random vectors, so many of each label, drawn to one direction of each label."""
    rng = np.random.default_rng(0)
    kept = []
    names = [f"label {number}" for number, size in enumerate(sizes) for _ in range(size)] + [None] * unlabelled
    middles = rng.standard_normal((len(sizes) + 1, DIM))
    for row, name in zip(rows(len(names), DIM), names, strict=True):
        middle = middles[-1 if name is None else int(name.split()[1])]
        vector = np.asarray(row.vector + 0.2 * middle, np.float32)
        kept.append(replace(row, vector=vector / np.linalg.norm(vector), label=name))
    return kept


def test_one_pair_in_a_hundred_of_different_labels_reaches_it(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", ABOUT) as store:
        ids = store.add(labelled([40, 30, 20], unlabelled=25))
        found = calibrate(store, "g")
        vectors = store.vectors(ids)[:90]
        names = [row.label for row in store.rows()][:90]
        pairs = [(float(vectors[i] @ vectors[j]), names[i] == names[j]) for i, j in combinations(range(90), 2)]
        different = [cosine for cosine, same in pairs if not same]
        reached = sum(cosine >= found.threshold for cosine in different)
        assert reached == int(0.01 * len(different))
        alike = [cosine >= found.threshold for cosine, same in pairs if same]
        assert found.recall == pytest.approx(np.mean(alike))
        assert (found.items, found.labels) == (90, 3)
        about = replace(ABOUT, own_threshold=found.threshold, own_rows=90, own_labels=3)
        assert store.about == about
    with SqliteStore.open(tmp_path / "g") as reader:
        assert reader.about == about


def test_of_many_rows_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_ITEMS", 80)
    monkeypatch.setattr(calibration, "READ_BATCH", 7)
    with SqliteStore.create(tmp_path / "g", ABOUT) as store:
        store.add(labelled([60, 60, 60]))
        assert calibrate(store, "g").items == 80


@pytest.mark.parametrize(
    ("sizes", "unlabelled", "said"),
    [
        ([], 30, "0 pairs"),
        ([200], 0, "0 pairs"),
        ([10, 99], 50, "990 pairs"),
        ([1] * 50, 0, "50 labels"),
    ],
)
def test_too_few_labels_are_refused(sizes: list[int], unlabelled: int, said: str, tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", ABOUT) as store:
        store.add(labelled(sizes, unlabelled=unlabelled))
        with pytest.raises(InputError, match=r"photos\.gallery") as caught:
            calibrate(store, "photos.gallery")
        assert said in str(caught.value)
        assert store.about == ABOUT
