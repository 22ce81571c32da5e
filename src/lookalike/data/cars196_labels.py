"""What the devkits of Cars196 say: the classes in their official order, and label and box of each image.

Every copy writes the classes' names in its own way ("Ram C/V Cargo Van Minivan 2012", "Ram C-V ...", "ram cv ...") and
many sort them, so a class is always known by its name, without case and punctuation, and gets its place in the official
list.

Boxes in the devkits count pixels from 1 and include the last one; here they are left, top, right, bottom from 0.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NoReturn

import numpy as np

from lookalike.data.catalog import Split
from lookalike.data.folder import Tree
from lookalike.data.matlab import read_mat, records_of, texts_of, whole_number
from lookalike.errors import InputError

MATS = re.compile(r"(.*/)?(cars_annos|cars_meta|cars_train_annos|cars_test_annos(_withlabels[^/]*)?)\.mat")
LISTS = re.compile(r"(.*/)?(anno_(train|test)|names)\.csv")  # beside the class folders of a widespread copy
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Annotation:
    """What is known of one image: its label (0 to 195), the half it belongs to, and its box."""

    label: int
    split: Split
    box: Box


@cache
def classes() -> tuple[str, ...]:
    """The 196 names, in the order of the official labels."""
    text = resources.files("lookalike.data").joinpath("cars196_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def label_of(name: str) -> int | None:
    """The official label of a class by its name, however a copy writes it; None for what is no class of Cars196."""
    return _labels().get(_plain(name))


def annotated(tree: Tree) -> dict[str, Annotation]:
    """Everything that the devkit files in a tree say, by official path: `car_ims/000001.jpg`, `cars_train/00001.jpg`.

    Images of the test half are in it only when a file with their labels is there.

    Raises:
        InputError: a file that is damaged or something else, or a label or class that Cars196 does not have.
    """
    files = {name.rpartition("/")[2]: name for name in tree.files if MATS.fullmatch(name) or LISTS.fullmatch(name)}
    found: dict[str, Annotation] = {}
    if whole := files.get("cars_annos.mat"):
        found |= _whole(tree, whole)
    numbers = _official_labels(tree, files)
    if train := files.get("cars_train_annos.mat"):
        found |= _half(tree, train, "train", numbers)
    elif train := files.get("anno_train.csv"):
        found |= _table(tree, train, "train", numbers)
    labelled = sorted(name for name in files if name.startswith("cars_test_annos_withlabels"))
    if labelled:
        found |= _half(tree, files[labelled[0]], "test", numbers)
    elif test := files.get("anno_test.csv"):
        found |= _table(tree, test, "test", numbers)
    return found


@cache
def _labels() -> dict[str, int]:
    return {_plain(name): label for label, name in enumerate(classes())}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _official_labels(tree: Tree, files: dict[str, str]) -> list[int]:
    """The official label of each class by its number in the devkit, less one; from its list of names where it is."""
    if meta := files.get("cars_meta.mat"):
        return _labels_of(tree, meta, texts_of(tree, meta, read_mat(tree, meta), "class_names"))
    if names := files.get("names.csv"):
        return _labels_of(tree, names, [" ".join(row) for row in _rows_of(tree, names)])
    return list(range(len(classes())))


def _labels_of(tree: Tree, file: str, names: list[str]) -> list[int]:
    labels = []
    for name in names:
        if (label := label_of(name)) is None:
            _refuse(tree, file, f"names the class '{name}', which Cars196 does not have")
        labels.append(label)
    if len(set(labels)) < len(labels):
        _refuse(tree, file, "names a class twice")
    return labels


def _whole(tree: Tree, file: str) -> dict[str, Annotation]:
    """`cars_annos.mat`, of the layout with all images in `car_ims/`."""
    variables = read_mat(tree, file)
    numbers = _labels_of(tree, file, texts_of(tree, file, variables, "class_names"))
    rows = records_of(tree, file, variables, "annotations", "relative_im_path", "class", "test", *CORNERS)
    found = {}
    for path, number, test, *box in rows:
        split: Split = "test" if np.any(test) else "train"
        found[f"car_ims/{_file_name(path)}"] = _annotation(tree, file, path, number, split, box, numbers)
    return found


def _half(tree: Tree, file: str, split: Split, numbers: list[int]) -> dict[str, Annotation]:
    """`cars_train_annos.mat` or `cars_test_annos_withlabels.mat`."""
    rows = records_of(tree, file, read_mat(tree, file), "annotations", "fname", "class", *CORNERS)
    return {
        f"cars_{split}/{_file_name(name)}": _annotation(tree, file, name, number, split, box, numbers)
        for name, number, *box in rows
    }


def _table(tree: Tree, file: str, split: Split, numbers: list[int]) -> dict[str, Annotation]:
    """`anno_train.csv` or `anno_test.csv`: file name, box, number of the class; no header."""
    found = {}
    for row in _rows_of(tree, file):
        if len(row) != 6 or not all(field.strip().isdecimal() for field in row[1:]):
            _refuse(tree, file, f"has a line that is not 'file, four corners, class': {','.join(row)[:80]}")
        *box, number = map(int, row[1:])
        found[f"cars_{split}/{_file_name(row[0])}"] = _annotation(tree, file, row[0], number, split, box, numbers)
    return found


def _rows_of(tree: Tree, file: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(tree.read_text(file).splitlines()) if row]
    except csv.Error as error:
        _refuse(tree, file, f"cannot be read as a table ({error})")


def _annotation(
    tree: Tree, file: str, image: Any, number: Any, split: Split, corners: list[Any], numbers: list[int]
) -> Annotation:
    try:
        place = whole_number(number) - 1
        left, top, right, bottom = map(whole_number, corners)
    except ValueError as error:
        _refuse(tree, file, f"gives no class and box for {image} ({error})")
    if place not in range(len(numbers)):
        _refuse(tree, file, f"gives {image} the class {place + 1}; classes run from 1 to {len(numbers)}")
    if left > right or top > bottom:
        _refuse(tree, file, f"gives {image} the empty box {left, top, right, bottom}")
    return Annotation(numbers[place], split, (left - 1, top - 1, right, bottom))


def _file_name(path: Any) -> str:
    return str(path).replace("\\", "/").rpartition("/")[2]


def _refuse(tree: Tree, file: str, what: str) -> NoReturn:
    raise InputError(f"{tree.root}: '{file}' {what}.", "Use the file that came with the data set.")
