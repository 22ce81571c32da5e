"""Copies: found by their bytes, kept on one side of a split that is drawn, and named where a split has them on both."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from image_factory import noise
from lookalike.data import copies as module
from lookalike.data.catalog import Catalog, Row
from lookalike.data.copies import Leak, leak, same_bytes
from lookalike.data.image_folder import read_folder, with_drawn_validation, with_validation
from lookalike.data.pack import pack
from lookalike.data.tables import read_table


def picture(path: Path, seed: int, side: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(side, side, seed)).save(path)
    return path


def sides(catalog: Catalog) -> dict[str, set[str]]:
    """The splits that each content lies in."""
    found: dict[str, set[str]] = defaultdict(set)
    for row, split in enumerate(catalog.splits.tolist()):
        found[catalog.read_bytes(row).hex()].add(split)
    return found


def twins(root: Path, count: int = 20) -> Path:
    """Every picture of two classes twice, the copies of every fifth in the other class."""
    for number in range(count):
        own = picture(root / "ab"[number % 2] / f"{number}.png", number)
        other = root / ("ab"[number % 2] if number % 5 else "ba"[number % 2]) / f"copy of {number}.png"
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(own, other)
    return root


def test_files_with_the_same_bytes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    long = bytes(10_000)
    contents = {
        "a": b"one", "b": b"two", "c": b"one", "d": b"", "e": b"", "f": b"three", "g": b"one",
        "long": long, "long too": long, "other head": b"x" + long[1:], "other tail": long[1:] + b"x",
    }  # fmt: skip
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    names = [*contents, "missing"]
    expected = [["a", "c", "g"], ["long", "long too"]]
    assert [[names[row] for row in group] for group in same_bytes(tmp_path, "folder", names)] == expected
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    found = same_bytes(tmp_path / "all.zip", "zip", names)
    assert [[names[row] for row in group] for group in found] == expected


def test_files_of_different_lengths_are_not_opened(tmp_path: Path) -> None:
    for length in (10, 20, 30):
        (tmp_path / f"{length}").write_bytes(bytes(length))
        (tmp_path / f"{length}").chmod(0)
    assert same_bytes(tmp_path, "folder", ["10", "20", "30"]) == []


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        os.mkfifo(tmp_path / name)
    assert same_bytes(tmp_path, "folder", ["one.png", "two.png"]) == []


@pytest.mark.parametrize("kind", ["folder", "zip", "table"])
def test_copies_stay_on_one_side_of_a_split_that_is_drawn(kind: str, tmp_path: Path) -> None:
    root = twins(tmp_path / "pets")
    if kind == "table":
        paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
        (root / "all.csv").write_text("path,label\n" + "".join(f"{path},{path[0]}\n" for path in paths))
        catalog = read_table(root / "all.csv", val_fraction=0.25)
    else:
        source = root if kind == "folder" else Path(shutil.make_archive(str(root), "zip", root))
        catalog = read_folder(source, val_fraction=0.25)
    found = sides(catalog)
    assert len(found) == 20
    assert all(len(splits) == 1 for splits in found.values())
    assert 8 <= len(catalog.rows_of("val")) <= 10


groups = st.lists(st.integers(1, 6), min_size=1, max_size=12)


@given(groups, st.integers(2, 4), st.floats(0.01, 0.9), st.integers(0, 3), st.randoms())
def test_every_class_keeps_a_training_image_and_gives_its_share(
    sizes: list[int], classes: int, fraction: float, seed: int, chance: random.Random
) -> None:
    rows, members = [], []
    for number, size in enumerate(sizes):
        members.append(list(range(len(rows), len(rows) + size)))
        rows += [Row(f"{number}-{copy}.jpg", chance.randrange(classes), "train") for copy in range(size)]
    drawn = with_validation(rows, fraction, seed, lambda paths: [group for group in members if len(group) > 1])
    splits = [row.split for row in drawn]
    assert [row.path for row in drawn] == [row.path for row in rows]
    assert all(len({splits[row] for row in group}) == 1 for group in members)
    for label in {row.label for row in rows}:
        own = [row.split for row in drawn if row.label == label]
        assert "train" in own
        lone = [group for group in members if len(group) == 1 and rows[group[0]].label == label]
        if len(lone) >= 2:
            assert "val" in own


def test_where_there_are_no_copies_the_split_is_what_it_was() -> None:
    rows = [Row(f"{label}/{n}.jpg", label, "train") for label in range(3) for n in range(40)]
    assert with_validation(rows, 0.3, 7, lambda paths: []) == with_validation(rows, 0.3, 7)


def test_a_class_of_copies_alone_gives_one_group() -> None:
    rows = [Row(f"{n}.jpg", 0, "train") for n in range(7)] + [Row("other.jpg", 1, "train")]
    drawn = with_validation(rows, 0.1, 0, lambda paths: [[0, 1, 2], [3, 4, 5, 6]])
    assert [row.path for row in drawn if row.split == "val"] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_published_set_without_a_validation_split_gets_one() -> None:
    rows = [Row(f"{label}/{n}.jpg", label, "train" if n < 10 else "test") for label in range(2) for n in range(14)]
    catalog = Catalog.from_rows(rows, root=Path("nowhere"), class_names=["a", "b"], name="cars196")
    drawn = with_drawn_validation(catalog, 0.2, 0)
    assert Counter(zip(drawn.splits.tolist(), drawn.labels.tolist(), strict=True)) == {
        ("train", 0): 8, ("train", 1): 8, ("val", 0): 2, ("val", 1): 2, ("test", 0): 4, ("test", 1): 4,
    }  # fmt: skip
    assert (drawn.paths, drawn.name, drawn.class_names) == (catalog.paths, catalog.name, catalog.class_names)
    assert with_drawn_validation(drawn, 0.5, 1) is drawn
    assert with_drawn_validation(catalog, 0, 0) is catalog


def test_pixels_on_both_sides_are_named(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for number in range(8):
        picture(root / "train" / "ab"[number % 2] / f"{number}.png", number)
    for number in range(4):
        picture(root / "val" / "ab"[number % 2] / f"{number}.png", 100 + number)
    with Image.open(root / "train" / "a" / "2.png") as image:
        image.save(root / "val" / "b" / "again.bmp")  # other bytes, the same pixels, another label
    shutil.copy(root / "train" / "b" / "3.png", root / "val" / "b" / "3 too.png")
    catalog = read_folder(root)
    cache = tmp_path / "packs"
    training, measured = (pack(catalog.select(catalog.rows_of(s)), 12, cache=cache) for s in ("train", "val"))
    found = leak(training, measured)
    assert found is not None
    assert (found.count, found.total) == (2, 6)
    assert dict(found.pairs) == {
        "val/b/again.bmp": "train/a/2.png",
        "val/b/3 too.png": "train/b/3.png",
    }
    assert "2 of 6 images are copies of training images" in found.sentence
    assert "val/b/again.bmp = train/a/2.png" in found.sentence
    assert leak(training, training) is not None
    apart = pack(
        catalog.select([row for row in catalog.rows_of("val") if "again" not in catalog.paths[row]][:1]),
        12,
        cache=cache,
    )
    assert leak(training, apart) is None


def test_many_copies_are_counted_and_some_are_named() -> None:
    pairs = tuple((f"val/{n}.jpg", f"train/{n}.jpg") for n in range(5))
    sentence = Leak(5, 10, pairs).sentence
    assert sentence.count(" = ") == 3
    assert sentence.endswith("...")
    assert "1 of 10 images is a copy" in Leak(1, 10, pairs[:1]).sentence
