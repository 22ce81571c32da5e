"""Cars196 (Stanford Cars) in its usual layouts, from a folder or a zip.

    car_ims/*.jpg, cars_annos.mat                        all 16,185 images in one folder, as first published
    cars_train/*.jpg, cars_test/*.jpg, devkit/*.mat      the two halves, as published later
    train/CLASS/*.jpg, test/CLASS/*.jpg                  class folders, as on Kaggle
    CLASS/*.jpg                                          class folders without the halves

Parent folders, doubled folders (`cars_train/cars_train/`) and the place of the .mat files do not matter. The labels of
the test half are in `cars_test_annos_withlabels.mat`, a separate download; without it, that half is left out.

Labels are the official ones, 0 to 195, in every layout, since the zero-shot split (first 98 classes, last 98 classes)
depends on them. Source: Krause et al., 3D Object Representations for Fine-Grained
Categorization, 2013.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from lookalike.data.catalog import SPLITS, Catalog, Row, Split
from lookalike.data.image_folder import SPLIT_NAMES, Tree, is_image, open_zip
from lookalike.data.spec import HUB, DatasetSpec, Mirror, RemoteFile, ZeroShot
from lookalike.errors import InputError

NAME = "cars196"


CLASSES = 196


COUNTS: dict[Split, int] = {"train": 8_144, "test": 8_041}


TOTAL = sum(COUNTS.values())


CROP_SAMPLE = 100  # images of a half whose sizes are compared with their boxes


CROPPED_SHARE = 0.9  # of the sample that has the size of the boxes, in a cropped copy


_OFFICIAL = re.compile(r"(?:.*/)?((?:car_ims|cars_train|cars_test)/[^/]+)")


_SPLITS = SPLIT_NAMES | {"cars_train": "train", "cars_test": "test"}


def read_cars196(path: str | Path) -> Catalog:
    """Read Cars196.

    Args:
        path: its folder, a folder just above it, or a zip of it.

    Returns:
        The catalog, sorted by split and id. Classes are the 196 official names, with or without images; splits "train"
        and "test" are the published ones (all "train" if the copy has none); ids are the official paths, or split,
        class and file name in class folders. Boxes are included if the copy has them and its images are not cropped.
        `remark` names what the copy lacks, or is "".

    Raises:
        InputError: a subfolder of the data set, missing labels, damaged .mat files, an image of an unknown class.
    """
    path = Path(path)
    if path.is_dir() and (home := _home_of(path)) is not None:
        raise InputError(f"{path}: this is only a part of Cars196.", f"Use {home}")
    return _Reader(Tree.open(path)).catalog()


def is_cars196(path: Path) -> bool:
    """Whether this is Cars196, whole or not, or a folder inside it."""
    if path.is_dir() and _home_of(path) is not None:
        return True
    images = [name for name in Tree.open(path).files if is_image(name)]
    if 2 * sum(_OFFICIAL.fullmatch(name) is not None for name in images) > len(images):
        return True
    labels = [label for name in images if (label := _class_of(name)) is not None]
    return len(set(labels)) > 1 and len(labels) >= 0.9 * len(images)


def is_home(folder: Path) -> bool:
    """Whether this is the data set's own folder, with the images as published."""
    return any((folder / name).is_dir() for name in ("car_ims", "cars_train", "cars_test"))


def is_part(name: str) -> bool:
    """Whether a file of a copy belongs to the set: images, and the lists that `annotated` reads."""
    return is_image(name) or name.endswith((".mat", ".csv"))


class _Reader:
    """Reads one tree in any layout."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.images = [name for name in tree.files if is_image(name)]
        self.known = annotated(tree)
        self.unlabelled = 0  # images of the test half without labels
        self.is_split = True

    def catalog(self) -> Catalog:
        official = {name: match[1] for name in self.images if (match := _OFFICIAL.fullmatch(name))}
        rows = list(self._by_list(official) if 2 * len(official) > len(self.images) else self._by_folder())
        rows.sort(key=lambda row: (SPLITS.index(row.split), row.id))
        if not rows and self.unlabelled:
            self._refuse_unlabelled("cars_test")
        catalog = Catalog.from_rows(
            rows, root=self.tree.root, class_names=classes(), name=NAME, container=self.tree.container
        )
        cropped = {split for split in SPLITS if _is_cropped(catalog, split)}
        if cropped:  # the boxes refer to the uncropped images
            rows = [replace(row, box=None) if row.split in cropped else row for row in rows]
        return Catalog.from_rows(
            rows,
            root=self.tree.root,
            class_names=classes(),
            name=NAME,
            container=self.tree.container,
            remark=self._remark(rows, cropped),
        )

    def _by_list(self, official: dict[str, str]) -> Iterator[Row]:
        """Images in the official folders, labelled by the devkit."""
        folders = {name.split("/")[0] for name in self.known}
        for name, place in official.items():
            folder = place.split("/")[0]
            if folder == "cars_test" and folder not in folders:
                self.unlabelled += 1
                continue
            if folder not in folders:
                self._refuse_unlabelled(folder)
            if place not in self.known:
                self._refuse(f"'{name}' is in no list of the devkit", "Remove it, or restore the devkit.")
            known = self.known[place]
            yield Row(name, known.label, known.split, known.box, place)

    def _by_folder(self) -> Iterator[Row]:
        """Images in class folders, with or without splits above them."""
        splits = {name: _split_of(name) for name in self.images}
        self.is_split = None not in splits.values()
        if not self.is_split and len(set(splits.values())) > 1:
            name = next(name for name, split in splits.items() if split is None)
            self._refuse(f"'{name}' lies in neither train/ nor test/", "Keep only these two, or neither.")
        for name, split in splits.items():
            label = _class_of(name)
            if label is None:
                self._refuse(f"'{name}' lies in the folder of no class of Cars196", "Move or remove it.")
            file = name.rpartition("/")[2]
            known = self._known(file, label, split)
            box = None if known is None else known.box
            folder = classes()[label].replace("/", "-")
            if split is not None:
                yield Row(name, label, split, box, f"{split}/{folder}/{file}")
            else:
                yield Row(name, label, "train", box, f"{folder}/{file}")

    def _known(self, file: str, label: int, split: Split | None) -> Annotation | None:
        """Return the annotation of an image in a class folder, if it kept its name."""
        known = self.known.get(f"cars_{split}/{file}" if split else f"car_ims/{file}")
        return known if known is not None and known.label == label else None

    def _remark(self, rows: list[Row], cropped: set[Split]) -> str:
        """Return what must be stated with results on this copy."""
        counts = Counter(row.split for row in rows)
        here, kinds = len(rows), len({row.label for row in rows})
        said = []
        if self.is_split and (here, kinds) == (COUNTS["train"], CLASSES) and counts["train"] == here:
            said.append(f"half: {here:,} of the {TOTAL:,} images")
        elif self.is_split and (here, kinds) == (COUNTS["test"], CLASSES) and counts["test"] == here:
            said.append(f"test half: {here:,} of the {TOTAL:,} images")
        elif here != TOTAL or kinds != CLASSES:
            said.append(f"part: {here:,} of the {TOTAL:,} images")
            said += [f"{kinds} of the {CLASSES} classes"] if kinds != CLASSES else []
        elif self.is_split and any(counts[split] != COUNTS[split] for split in COUNTS):
            said.append(f"another split: {', '.join(f'{counts[split]:,} {split}' for split in SPLITS)} images")
        if cropped == set(counts):
            said[:1] = [f"cropped {said[0]}"] if said else [f"cropped: all {TOTAL:,} images"]
            said.append("already cropped to their boxes")
        elif cropped:
            said.append(f"those of {' and '.join(sorted(cropped))} already cropped to their boxes")
        if not self.is_split:
            said.append("without the official split")
        if self.unlabelled:
            said.append(f"{self.unlabelled:,} test images left out for want of cars_test_annos_withlabels.mat")
        return ", ".join(said)

    def _refuse_unlabelled(self, folder: str) -> NoReturn:
        file = {"car_ims": "cars_annos.mat", "cars_train": "cars_train_annos.mat"}.get(
            folder, "cars_test_annos_withlabels.mat"
        )
        self._refuse(
            f"the images of {folder}/ have no labels: {file} is missing",
            f"Put it and cars_meta.mat into {self.tree.root / 'devkit'}"
            if folder != "car_ims"
            else f"Put it beside {folder}/ (files of the devkit label cars_train/ and cars_test/ only).",
        )

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise InputError(f"{self.tree.root}: {what}.", remedy)


def top_of(tree: Tree) -> str:
    """Return the folders above the data set's own ones; "" if they are not the same for all files."""
    files = [name for name in tree.files if is_part(name)]
    top = ""
    while heads := {name.removeprefix(top).split("/")[0] for name in files}:
        head = heads.pop()
        if heads or head.lower() in _SPLITS or head == "car_ims" or label_of(head) is not None:
            break
        if any("/" not in name.removeprefix(top) for name in files):
            break
        top += f"{head}/"
    return top


def _class_of(name: str) -> int | None:
    """Return the label by the folder of an image; a class name with a slash has become two folders."""
    *above, folder, _ = ["", "", *name.split("/")]
    label = label_of(folder)
    return label if label is not None else label_of(above[-1] + folder)


def _split_of(name: str) -> Split | None:
    """Return the split by the nearest parent folder with the name of one."""
    folders = [part.lower() for part in name.split("/")[:-1]]
    return next((_SPLITS[folder] for folder in reversed(folders) if folder in _SPLITS), None)


def _home_of(path: Path) -> Path | None:
    """Return the data set's folder, if `path` is one of its subfolders."""
    inside = path.resolve()
    if inside.name not in {"car_ims", "cars_train", "cars_test", "devkit"}:
        return None
    home = inside.parent
    if any((inside / name).is_dir() for name in ("car_ims", "cars_train", "cars_test")) or not home.is_dir():
        return None
    lists = [*home.glob("*.mat"), *home.glob("devkit/*.mat")]
    has_images = any((home / name).is_dir() for name in ("car_ims", "cars_train", "cars_test"))
    return home if has_images and any(MATS.fullmatch(one.name) for one in lists) else None


def _is_cropped(catalog: Catalog, split: Split) -> bool:
    """Whether the images of a split have the size of their boxes, within one pixel."""
    rows = [row for row in catalog.rows_of(split).tolist() if catalog.boxes[row] is not None]
    if not rows:
        return False
    some = sorted({rows[place] for place in np.linspace(0, len(rows) - 1, CROP_SAMPLE).astype(int)})
    agree = [same for row in some if (same := _is_as_large_as_its_box(catalog, row)) is not None]
    return bool(agree) and sum(agree) >= CROPPED_SHARE * len(agree)


def _is_as_large_as_its_box(catalog: Catalog, row: int) -> bool | None:
    """None for an image that cannot be opened; decoding reports it."""
    try:
        with Image.open(io.BytesIO(catalog.read_bytes(row))) as image:
            width, height = image.size
    except (InputError, OSError, ValueError, Image.DecompressionBombError):
        return None
    left, top, right, bottom = catalog.boxes[row] or (0, 0, 0, 0)
    return abs(width - (right - left)) <= 1 and abs(height - (bottom - top)) <= 1


# The annotations: classes in official order, and label and box of each image.

MATS = re.compile(r"(.*/)?(cars_annos|cars_meta|cars_train_annos|cars_test_annos(_withlabels[^/]*)?)\.mat")


LISTS = re.compile(r"(.*/)?(anno_(train|test)|names)\.csv")  # of a widespread copy in class folders


CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Annotation:
    """Label (0 to 195), split and box of one image."""

    label: int
    split: Split
    box: Box


@cache
def classes() -> tuple[str, ...]:
    """Return the 196 class names, in the order of the official labels."""
    text = resources.files("lookalike.data").joinpath("cars196_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def label_of(name: str) -> int | None:
    """Return the official label of a class name in any spelling; None if Cars196 has no such class."""
    return _labels().get(_plain(name))


def annotated(tree: Tree) -> dict[str, Annotation]:
    """Read the annotations in a tree, by official path: `car_ims/000001.jpg`, `cars_train/00001.jpg`.

    Images of the test half are included only if there is a file with their labels.

    Raises:
        InputError: a damaged file, or a label or class that Cars196 does not have.
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
    """Return the official label of each class number in the devkit less one, from its list of names if it has one."""
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


# MATLAB files. They are untrusted input, so they are limited in size and any failure of SciPy is an InputError.

MAX_BYTES = 16 * 2**20  # of a file; real annotations have a few hundred thousand


def read_mat(tree: Tree, name: str) -> dict[str, Any]:
    """Read the variables of a `.mat` file (MATLAB 4 to 7.2), arrays squeezed and text as str.

    Args:
        tree: the folder or zip.
        name: of the file in it.

    Raises:
        InputError: unreadable, too large, damaged or not a MATLAB file.
    """
    from scipy.io import loadmat

    try:
        return dict(loadmat(io.BytesIO(_read(tree, name)), squeeze_me=True))
    except InputError:
        raise
    except Exception as error:  # loadmat raises nearly anything on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{tree.root}: '{name}' is no MATLAB file, or damaged ({reason}).", "Restore it.") from None


def records_of(tree: Tree, name: str, variables: dict[str, Any], variable: str, *fields: str) -> list[tuple[Any, ...]]:
    """Return the values of some fields of a struct array, row by row.

    Raises:
        InputError: there is no such variable, or it lacks a field.
    """
    array = np.atleast_1d(variables.get(variable, np.empty(0)))
    if missing := [field for field in fields if field not in (array.dtype.names or ())]:
        _refuse_matlab(tree, name, f"has no '{variable}' with the field '{missing[0]}'")
    return [tuple(row[field] for field in fields) for row in array.ravel()]


def texts_of(tree: Tree, name: str, variables: dict[str, Any], variable: str) -> list[str]:
    """A cell array of text.

    Raises:
        InputError: there is no such variable, or something else stands in it.
    """
    texts = np.atleast_1d(variables.get(variable, np.empty(0))).ravel().tolist()
    if not texts or not all(isinstance(text, str) for text in texts):
        _refuse_matlab(tree, name, f"has no list of names called '{variable}'")
    return [str(text) for text in texts]


def whole_number(value: Any) -> int:
    """The whole number in a cell.

    Raises:
        ValueError: it is none.
    """
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "buif":
        raise ValueError(f"{value!r} is no number")
    number = float(array.ravel()[0])
    if not number.is_integer() or abs(number) >= 2**31:
        raise ValueError(f"{number} is no whole number")
    return int(number)


def _read(tree: Tree, name: str) -> bytes:
    try:
        if tree.container == "folder":
            with (tree.root / name).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with open_zip(tree.root) as archive, archive.open(name) as member:
                data = member.read(MAX_BYTES + 1)
    except (OSError, KeyError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{tree.root}: cannot read '{name}' ({error}).", "Restore this file.") from None
    if len(data) > MAX_BYTES:
        _refuse_matlab(tree, name, f"is larger than {MAX_BYTES // 2**20} MiB")
    return data


def _refuse_matlab(tree: Tree, name: str, what: str) -> NoReturn:
    raise InputError(f"{tree.root}: '{name}' {what}.", "Use the file that came with the data set.")


# The official servers (ai.stanford.edu/~jkrause/cars and imagenet.stanford.edu) are gone since 2023. Revisions, files
# and columns are those that public loaders of these copies name; the import compares the classes with the official
# names. The size is rounded: the Hub sends the exact one.
_SHARDS = tuple(f"{split}-0000{part}-of-00002.parquet" for split in ("train", "test") for part in (0, 1))
_COPIES = {
    "tanganke/stanford_cars": "9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40",
    "isaacchung/StanfordCars": "09ffe9bc7864d3f1e851529e5c4b7e05601a04fb",
}

SPEC = DatasetSpec(
    name=NAME,
    title="Cars196",
    about="Stanford Cars: models of cars, photographs",
    url="https://huggingface.co/datasets/tanganke/stanford_cars",
    licence="non-commercial research",
    citation="Krause et al., 3D Object Representations for Fine-Grained Categorization, 2013",
    classes=CLASSES,
    counts=COUNTS,
    matches=is_cars196,
    is_home=is_home,
    read=read_cars196,
    top_of=top_of,
    is_part=is_part,
    mirrors=tuple(
        Mirror(
            f"Hugging Face ({copy})",
            tuple(RemoteFile(name, f"{HUB}/datasets/{copy}/resolve/{revision}/data/{name}") for name in _SHARDS),
            remark="This copy has no boxes. The official server is gone since 2023.",
        )
        for copy, revision in _COPIES.items()
    ),
    size_bytes=1_976_000_000,
    by_hand="The official server is gone since 2023. Get cars_train/, cars_test/, cars_meta.mat, cars_train_annos.mat "
    "and cars_test_annos_withlabels.mat (or car_ims/ and cars_annos.mat; or a copy in class folders, as on Kaggle) "
    "in another way, put them into one folder, the .mat files into devkit/ in it, and run: "
    "lookalike data import THAT_FOLDER --name cars196",
    zero_shot=ZeroShot("cars196-zero-shot", 98, 8_054, 8_131),
)
