"""Class folders: `root/CLASS/*.jpg` or `root/{train,val,test}/CLASS/*.jpg`, as a folder or as a zip of one."""

from __future__ import annotations

import hashlib
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import pyarrow as pa

from lookalike.data.catalog import UNLABELLED, Catalog, Row, Split
from lookalike.data.copies import same_bytes
from lookalike.data.scan import MEDIA, NO_FILE, Scan, check_names, count_kind, in_words, is_hidden, kind_of, sentence
from lookalike.data.scan import is_image as is_image
from lookalike.errors import InputError
from lookalike.image import EXTENSIONS

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
VAL_FRACTION = 0.1  # default share of each class for validation
MAX_TEXT_BYTES = 64 * 2**20  # of a list in a zip, unpacked; real ones have one or two million


@dataclass(frozen=True)
class Tree:
    """The files of a folder or a zip, without hidden files and `__MACOSX`.

    Args:
        root: the folder, or the zip file.
        container: "folder" or "zip".
        files: names relative to `root`, with "/" between the parts, sorted.
        empty_folders: names of empty folders.
        passed_over: numbers of files that are not images, by kind; see `Scan`.
    """

    root: Path
    container: Literal["folder", "zip"]
    files: tuple[str, ...]
    empty_folders: tuple[str, ...]
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Tree:
        """List a folder or a zip.

        Raises:
            InputError: `path` does not exist, cannot be listed, is a file but not a whole zip, or contains a name that
            is
                not UTF-8.
        """
        check_names(str(path.parent), iter([path.name or path.resolve().name]))
        if path.is_dir():
            return cls._of_folder(path)
        with open_zip(path) as archive:
            names = sorted(name for name in archive.namelist() if not is_hidden(name))
        files = [name for name in names if not name.endswith("/")]
        holders = {parent for name in files for parent in _parents(name)}
        empty = [name[:-1] for name in names if name.endswith("/") and name[:-1] not in holders]
        passed_over: Counter[str] = Counter()
        for name in files:
            count_kind(passed_over, name)
        return cls(path, "zip", tuple(files), tuple(empty), passed_over)

    @classmethod
    def _of_folder(cls, path: Path) -> Tree:
        scan = Scan(str(path), wanted=lambda name: True)
        start = len(str(path).rstrip("/")) + 1
        files = sorted(name[start:] for name in scan.files())
        if scan.faults:
            folder, reason = scan.faults[0]
            raise InputError(f"{folder}: {reason}.", "Check its rights.")
        check_names(str(path), iter(files))
        scan.passed_over[NO_FILE] += len(scan.special)
        empty = tuple(sorted(name[start:] for name in scan.empty if len(name) >= start))
        return cls(path, "folder", tuple(files), empty, +scan.passed_over)

    def read_text(self, name: str) -> str:
        """Read a small text file (UTF-8).

        Raises:
            InputError: it is missing, unreadable, larger than `MAX_TEXT_BYTES` or not text.
        """
        try:
            if self.container == "folder":
                return (self.root / name).read_text(encoding="utf-8-sig")
            with open_zip(self.root) as archive, archive.open(name) as file:
                text = file.read(MAX_TEXT_BYTES + 1)
            if len(text) > MAX_TEXT_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_TEXT_BYTES // 2**20} MiB")
            return text.decode("utf-8-sig")
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.root}: cannot read '{name}' ({error}).", "Restore this file.") from None


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading.

    Raises:
        InputError: it cannot be opened, is not a zip, or is cut short.
    """
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            started = file.read(4) == b"PK\x03\x04"
        if started:
            raise InputError(f"{path}: this zip ends early or is damaged.", "Download or copy it again.") from None
        raise InputError(f"{path}: neither a folder nor a zip.", "Point at a folder, a zip or a table.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}).", "Check the path and its rights.") from None


def read_folder(path: str | Path, *, val_fraction: float = VAL_FRACTION, split_seed: int = 0) -> Catalog:
    """Read class folders.

    `root/CLASS/...` has a folder for each class, with images at any depth. `root/{train,val,test}/CLASS/...` has splits
    too (`valid` and `validation` also mean val); images directly in `test/` have no label. Without a `val/`, a share of
    each class's training images becomes the validation split (see `with_validation`).

    Args:
        path: the folder, or a zip of it.
        val_fraction: share of each class's images for validation, in [0, 1), if there is no `val/`.
        split_seed: seed of that choice.

    Returns:
        The catalog. Classes are the names of the folders, sorted; ids are the paths below the root.

    Raises:
        InputError: no images, an empty class, only one class, an image outside of the class folders, a class in `val/`
            or `test/` that is not in `train/`, or a damaged zip.
    """
    tree = Tree.open(Path(path))
    images = [name for name in tree.files if is_image(name)]
    if not images:
        _refuse_without_images(tree)
    top = top_of(tree)
    paths = {name.removeprefix(top): name for name in images}
    has_splits = _has_splits(tree, paths)
    placed = {name: _place(tree, name, has_splits) for name in paths}
    called = one_name_each(name for _, name in placed.values() if name is not None)
    placed = {name: (split, called.get(of or "")) for name, (split, of) in placed.items()}
    classes = sorted({name for split, name in placed.values() if split == "train" and name is not None})
    _check_classes(tree, classes, {called.get(name, name): name for name in _class_folders(tree, top, has_splits)})
    label_of: dict[str | None, int] = {None: UNLABELLED} | {name: label for label, name in enumerate(classes)}
    for name, (_, class_name) in placed.items():
        if class_name not in label_of:
            _refuse(tree, f"'{name}' is of class '{class_name}', which train/ does not have", "Add it, or remove it.")
    rows = [Row(paths[name], label_of[of], split, None, name) for name, (split, of) in placed.items()]
    resolved = tree.root.resolve()
    return Catalog.from_rows(
        with_validation(rows, val_fraction, split_seed, partial(same_bytes, tree.root, tree.container)),
        root=tree.root,
        class_names=classes,
        name=resolved.stem if tree.container == "zip" else resolved.name,
        container=tree.container,
        passed_over=tree.passed_over,
    )


def one_name_each(names: Iterable[str]) -> dict[str, str]:
    """Map folder names to class names: names that differ only in Unicode normalisation become one class (NFC)."""
    written: dict[str, set[str]] = defaultdict(set)
    for name in names:
        written[unicodedata.normalize("NFC", name)].add(name)
    return {name: composed if len(those) > 1 else name for composed, those in written.items() for name in those}


def with_validation(
    rows: list[Row], fraction: float, seed: int, copies: Callable[[list[str]], list[list[int]]] | None = None
) -> list[Row]:
    """Move a share of each class's training rows to validation, unless there is a validation split.

    The choice is made by a hash of seed and id, so it depends neither on the order of the rows nor on other classes.
    Copies stay on one side, also across classes. A class keeps at least one training image, and gives at least one if
    it has two that are not copies.

    Args:
        rows: rows with splits.
        fraction: share of each class, in [0, 1), rounded to whole images; rounded down if only a group of copies could
            fill it.
        seed: of the choice.
        copies: finds groups of copies among paths (see `lookalike.data.copies.same_bytes`); None: there are no copies.

    Returns:
        The rows in the same order, some with another split.

    Raises:
        InputError: a fraction out of range.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"val_fraction is {fraction}.", "Give a share of at least 0 and below 1, such as 0.1.")
    if fraction == 0 or any(row.split == "val" for row in rows):
        return rows
    training = [place for place, row in enumerate(rows) if row.split == "train"]
    members = {place: [place] for place in training}
    for group in copies([rows[place].path for place in training]) if copies else ():
        places = [training[one] for one in group]
        members |= zip(places, [places] * len(places), strict=True)
    chosen = _draw({place: rows[place] for place in training}, members, fraction, seed)
    return [replace(row, split="val") if place in chosen else row for place, row in enumerate(rows)]


def _draw(rows: dict[int, Row], members: dict[int, list[int]], fraction: float, seed: int) -> set[int]:
    """Choose the rows for validation, as `with_validation` describes; `members` are the copies of each row."""
    places_of: dict[int, list[int]] = defaultdict(list)
    for place, row in rows.items():
        places_of[row.label].append(place)
    counts = {label: len(places) for label, places in places_of.items()}
    wanted = {label: min(max(round(fraction * count), 1), count - 1) for label, count in counts.items()}
    taken = dict.fromkeys(counts, 0)
    chosen: set[int] = set()

    def take(place: int, limit: dict[int, int]) -> None:
        """Choose a row and its copies, if no class exceeds its limit."""
        more = Counter(rows[one].label for one in members[place])
        if place not in chosen and all(taken[label] + count <= limit[label] for label, count in more.items()):
            chosen.update(members[place])
            for label, count in more.items():
                taken[label] += count

    for places in places_of.values():
        places.sort(key=lambda one: hashlib.sha256(f"{seed}/{rows[one].id or rows[one].path}".encode()).digest())
    for label in sorted(places_of):
        for place in places_of[label]:
            if taken[label] >= wanted[label]:
                break
            take(place, wanted)
    all_but_one = {label: count - 1 for label, count in counts.items()}
    for label in sorted(places_of):  # classes with groups of copies larger than their share
        for place in sorted(places_of[label], key=lambda one: len(members[one])):
            if taken[label]:
                break
            take(place, all_but_one)
    return chosen


def with_drawn_validation(catalog: Catalog, fraction: float, seed: int) -> Catalog:
    """Return the catalog with a validation split: its own, or one drawn from its training images.

    Readers keep the official splits of a data set, and some data sets have no validation split.

    Raises:
        InputError: a fraction out of range.
    """
    if fraction == 0 or len(catalog.rows_of("val")):
        return catalog
    rows = [
        Row(path, int(label), split, box, mark)
        for path, label, split, box, mark in zip(
            catalog.paths, catalog.labels, catalog.splits.tolist(), catalog.boxes, catalog.ids, strict=True
        )
    ]
    drawn = with_validation(rows, fraction, seed, partial(same_bytes, catalog.root, catalog.container))
    place = catalog.table.schema.get_field_index("split")
    splits = pa.array([row.split for row in drawn], pa.string())
    return replace(catalog, table=catalog.table.set_column(place, catalog.table.schema.field("split"), splits))


def top_of(tree: Tree) -> str:
    """Return the folders above the class folders of a zip: `images/` for `images/cat/1.jpg`; "" for a folder."""
    images = [name for name in tree.files if is_image(name)]
    top = ""
    while tree.container == "zip" and all(name.removeprefix(top).count("/") >= 2 for name in images):
        heads = {name.removeprefix(top).split("/")[0] for name in images}
        if len(heads) != 1 or heads & SPLIT_NAMES.keys():
            break
        top += f"{heads.pop()}/"
    return top


def _has_splits(tree: Tree, names: Iterable[str]) -> bool:
    """Whether the first folders are splits: images in `train/CLASS/`. (Images in `train/` itself show trains.)"""
    heads = sorted({name.split("/")[0] for name in names if "/" in name})
    deep = {name.split("/")[0].lower() for name in names if name.count("/") >= 2}
    splits = [head for head in heads if head.lower() in SPLIT_NAMES]
    if not any(SPLIT_NAMES.get(head) == "train" for head in deep):
        if deep and splits == heads:
            _refuse(tree, f"no train/ with class folders beside {splits[0]}/", "Add the training images.")
        return False
    if others := [head for head in heads if head not in splits]:
        _refuse(tree, f"'{others[0]}' lies beside train/ and is no split", "Keep only train, val and test there.")
    if len({SPLIT_NAMES[head.lower()] for head in splits}) < len(splits):
        _refuse(tree, f"{', '.join(splits)}: two of these are the same split", "Keep one folder for each split.")
    return True


def _place(tree: Tree, name: str, has_splits: bool) -> tuple[Split, str | None]:
    """Return split and class of an image by its folders; the class is None for an image directly in test/."""
    folders = name.split("/")[:-1]
    split: Split = "train"
    if has_splits and folders:
        split = SPLIT_NAMES[folders.pop(0).lower()]
    if not folders and split != "test":
        _refuse(tree, f"'{name}' lies in no class's folder", "Move it into the folder of its class, or remove it.")
    return split, folders[0] if folders else None


def _class_folders(tree: Tree, top: str, has_splits: bool) -> Iterator[str]:
    """Yield the class folders, with images or without, possibly more than once."""
    for name in (*tree.files, *(f"{folder}/nothing" for folder in tree.empty_folders)):
        folders = name.removeprefix(top).split("/")[:-1]
        if has_splits and folders:
            folders = folders[1:] if SPLIT_NAMES.get(folders[0].lower()) == "train" else []
        if folders:
            yield folders[0]


def _check_classes(tree: Tree, classes: list[str], folders: Mapping[str, str]) -> None:
    """Refuse classes without images, and fewer than two classes. `folders`: the folder of each class."""
    if empty := sorted(folders.keys() - set(classes)):
        there = Counter(kind_of(name) for name in tree.files if folders[empty[0]] in name.split("/")[:-1])
        kinds = f"{in_words(there)}; " * bool(there) + f"read are {', '.join(sorted(EXTENSIONS))}"
        _refuse(tree, f"class '{empty[0]}' has no images ({kinds})", "Put some into its folder, or remove the folder.")
    if not classes:
        _refuse(tree, "no class folders", "Put the images of each class into a folder of its own.")
    if len(classes) == 1:
        remedy = f"Add a folder for each other class, or point at the folder '{classes[0]}' if they lie in there."
        _refuse(tree, f"one class only, '{classes[0]}'", remedy)


def _refuse_without_images(tree: Tree) -> NoReturn:
    if MEDIA & tree.passed_over.keys():
        _refuse(tree, f"no image that can be read in it ({sentence(tree.passed_over)})", "Convert them to JPEG or PNG.")
    passed_over = f" ({in_words(tree.passed_over)})" if tree.passed_over else ""
    _refuse(tree, f"no images in it{passed_over}", "Point at a folder with one folder of images for each class.")


def _refuse(tree: Tree, what: str, remedy: str) -> NoReturn:
    raise InputError(f"{tree.root}: {what}.", remedy)


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
