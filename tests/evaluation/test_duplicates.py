"""Near-duplicates: copies that were re-encoded or brightened are found, other pictures are not."""

from __future__ import annotations

import doctest
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lookalike.data.synthetic import CLASS_NAMES, render
from lookalike.errors import InputError
from lookalike.evaluation import duplicates
from lookalike.evaluation.duplicates import groups_of, near_duplicates


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    """Two pictures of each built-in class, (48, 48, 48, 3): no two of them are copies."""
    names = [name for name in CLASS_NAMES for _ in range(2)]
    return np.stack([render(name, np.random.default_rng(number), 48) for number, name in enumerate(names)])


def jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def scaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    small = Image.fromarray(image).resize((31, 31), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC))


def test_different_pictures_are_no_duplicates(pictures: NDArray[np.uint8]) -> None:
    assert len(near_duplicates(pictures)) == 0


def test_copies_are_found_and_exact_ones_told_apart(pictures: NDArray[np.uint8]) -> None:
    brighter = np.clip(pictures[7].astype(int) + 4, 0, 255).astype(np.uint8)
    copies = [jpeg(pictures[3], 60), pictures[3], scaled(pictures[20]), brighter]
    found = near_duplicates(np.concatenate([pictures, np.stack(copies)]))
    assert found.pairs.tolist() == [[3, 48], [3, 49], [7, 51], [20, 50], [48, 49]]
    assert found.exact.tolist() == [False, True, False, False, False]


def test_across_two_sets_and_in_tiles(pictures: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "TILE", 5)
    monkeypatch.setattr(duplicates, "CHUNK", 7)
    found = near_duplicates(pictures, pictures[[11, 4, 11]])
    assert found.pairs.tolist() == [[4, 1], [11, 0], [11, 2]]
    assert found.exact.all()
    twice = near_duplicates(np.concatenate([pictures, pictures]))
    assert twice.pairs.tolist() == [[row, row + 48] for row in range(48)]


def test_plain_areas_of_another_colour_are_not_alike() -> None:
    plain = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (10, 200, 203)])
    assert near_duplicates(plain).pairs.tolist() == [[1, 2]]


def test_chains_make_groups() -> None:
    assert groups_of(np.array([[4, 5], [1, 2], [2, 4]]), 7).tolist() == [0, 1, 1, 3, 1, 1, 6]
    assert groups_of(np.empty((0, 2), np.int64), 3).tolist() == [0, 1, 2]
    result = doctest.testmod(duplicates)
    assert (result.attempted, result.failed) == (1, 0)


def test_what_is_no_set_of_images_is_refused(pictures: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="float32"):
        near_duplicates(pictures.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"(20, 48, 3)|48"):
        near_duplicates(pictures, pictures[:, :20])
