"""Reader for CUB-200-2011 (Caltech-UCSD Birds) in its official layout, as a folder or a zip.

    CUB_200_2011/images.txt               image id, path below images/
                 image_class_labels.txt   image id, class id
                 classes.txt              class id, its folder, for example 001.Black_footed_Albatross
                 train_test_split.txt     image id, 1 for training or 0 for testing
                 bounding_boxes.txt       image id, left, top, width, height in pixels
                 images/FOLDER/*.jpg      11,788 images of 200 classes

Labels are the official class ids minus 1. The zero-shot retrieval protocol trains on the first 100 classes and tests on
the other 100. Source: Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NoReturn

from lookalike.data.catalog import SPLITS, Catalog, Row, Split
from lookalike.data.image_folder import Tree, is_image
from lookalike.data.spec import DatasetSpec, ZeroShot
from lookalike.errors import InputError

NAME = "cub200"
CLASSES = 200
COUNTS: dict[Split, int] = {"train": 5_994, "test": 5_794}
TOTAL = sum(COUNTS.values())
NEEDED = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")
LISTS = (*NEEDED, "bounding_boxes.txt")

Box = tuple[int, int, int, int]


def read_cub200(path: str | Path) -> Catalog:
    """Read CUB-200-2011.

    Args:
        path: the folder `CUB_200_2011`, its parent folder, or a zip of it.

    Returns:
        The catalog, sorted by split and id. It has all classes of `classes.txt`, with their folders as `class_ids`, the
        official splits "train" and "test", and the official paths as ids. It has boxes if `bounding_boxes.txt` exists.
        Listed images that are missing are skipped; `remark` says what is missing, or is "".

    Raises:
        InputError: a list is missing, malformed or inconsistent with another, or an image is not in `images.txt`.
    """
    tree = Tree.open(Path(path))
    top = top_of(tree)
    files = {name.removeprefix(top): name for name in tree.files if name.startswith(top)}
    for needed in NEEDED:
        if needed not in files:
            _refuse(tree, f"{top}{needed} is missing", "Unpack the whole CUB_200_2011.tgz.")
    lists = {name: _read(tree, files[name]) for name in LISTS if name in files}
    folders = [folder for _, folder in sorted((int(number), rest) for number, rest in lists["classes.txt"].items())]
    if sorted(map(int, lists["classes.txt"])) != list(range(1, len(folders) + 1)):
        _refuse(tree, "classes.txt does not count its classes from 1", "Restore it.")
    rows = [
        _row(tree, files[f"images/{place}"], number, place, lists, len(folders))
        for number, place in lists["images.txt"].items()
        if f"images/{place}" in files
    ]
    images = {path for name, path in files.items() if name.startswith("images/") and is_image(name)}
    if unlisted := sorted(images - {row.path for row in rows}):
        _refuse(tree, f"'{unlisted[0]}' is not in images.txt", "Remove it, or restore the list.")
    rows.sort(key=lambda row: (SPLITS.index(row.split), row.id))
    return Catalog.from_rows(
        rows,
        root=tree.root,
        class_names=[folder.partition(".")[2].replace("_", " ") or folder for folder in folders],
        class_ids=folders,
        name=NAME,
        container=tree.container,
        remark=_remark(rows),
    )


def is_cub200(path: Path) -> bool:
    """Return whether this is a complete or partial copy of CUB-200-2011; fast for a folder."""
    if path.is_dir():
        return is_home(path) or is_home(path / "CUB_200_2011")
    files = set(Tree.open(path).files)
    return any(name.removesuffix(NEEDED[0]) + NEEDED[1] in files for name in files if name.endswith(NEEDED[0]))


def is_home(folder: Path) -> bool:
    """Return whether this is the top folder of the data set."""
    return all((folder / name).is_file() for name in NEEDED[:2])


def is_part(name: str) -> bool:
    """Return whether a file belongs to the data set: an image, or a list that the reader uses."""
    return is_image(name) or name.rpartition("/")[2] in LISTS


def top_of(tree: Tree) -> str:
    """Return the prefix of the file names before `images.txt`.

    Raises:
        InputError: there is no `images.txt`, or more than one.
    """
    tops = [name.removesuffix(NEEDED[0]) for name in tree.files if f"/{name}".endswith(f"/{NEEDED[0]}")]
    if len(tops) != 1:
        what = "no images.txt" if not tops else f"{len(tops)} files called images.txt"
        _refuse(tree, f"{what} in it", "Use the folder CUB_200_2011.")
    return tops[0]


def _read(tree: Tree, name: str) -> dict[str, str]:
    """Read a list: the id at the start of each line to the rest of the line."""
    found: dict[str, str] = {}
    for place, line in enumerate(tree.read_text(name).splitlines(), start=1):
        number, _, rest = line.strip().partition(" ")
        if not number.isdecimal() or not rest:
            _refuse(tree, f"{name}, line {place} is not a number and a value", "Restore this file.")
        if found.setdefault(str(int(number)), rest.strip()) != rest.strip():
            _refuse(tree, f"{name}, line {place}: {number} has another value above", "Restore this file.")
    return found


def _row(tree: Tree, path: str, number: str, place: str, lists: dict[str, dict[str, str]], classes: int) -> Row:
    label = lists["image_class_labels.txt"].get(number, "")
    if not label.isdecimal() or not 1 <= int(label) <= classes:
        _refuse(tree, f"'{place}' has the class '{label}'; classes run from 1 to {classes}", "Restore the lists.")
    training = lists["train_test_split.txt"].get(number)
    if training not in {"0", "1"}:
        _refuse(tree, f"'{place}' is neither 0 nor 1 in train_test_split.txt", "Restore it.")
    box = _box(tree, place, lists["bounding_boxes.txt"].get(number, "")) if "bounding_boxes.txt" in lists else None
    return Row(path, int(label) - 1, "train" if training == "1" else "test", box, f"images/{place}")


def _box(tree: Tree, place: str, text: str) -> Box:
    """Convert left, top, width, height to left, top, right, bottom, rounded outwards."""
    try:
        left, top, width, height = map(float, text.split())
        box = (math.floor(left), math.floor(top), math.ceil(left + width), math.ceil(top + height))
        if width <= 0 or height <= 0 or any(abs(side) >= 2**31 for side in box):
            raise ValueError
    except (ValueError, OverflowError):
        _refuse(tree, f"'{place}' has the box '{text}' in bounding_boxes.txt", "Restore it.")
    return box


def _remark(rows: list[Row]) -> str:
    counts = Counter(row.split for row in rows)
    kinds = len({row.label for row in rows})
    if kinds == CLASSES and dict(counts) == COUNTS:
        return ""
    if len(rows) == TOTAL and kinds == CLASSES:
        return f"another split: {counts['train']:,} training and {counts['test']:,} test images"
    return f"part: {len(rows):,} of the {TOTAL:,} images, {kinds} of the {CLASSES} classes"


def _refuse(tree: Tree, what: str, remedy: str) -> NoReturn:
    raise InputError(f"{tree.root}: {what}.", remedy)


SPEC = DatasetSpec(
    name=NAME,
    title="CUB-200-2011",
    about="Caltech-UCSD Birds: species of birds, photographs with boxes",
    url="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    licence="non-commercial research and education",
    citation="Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, 2011",
    classes=CLASSES,
    counts=COUNTS,
    matches=is_cub200,
    is_home=is_home,
    read=read_cub200,
    top_of=top_of,
    is_part=is_part,
    by_hand="Get CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/, unpack it, and run: "
    "lookalike data import CUB_200_2011 --name cub200",
    zero_shot=ZeroShot("cub200-zero-shot", 100, 5_864, 5_924),
)
