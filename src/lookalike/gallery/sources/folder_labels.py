"""Labels from folders: the class of an image, and its split in a known data set.

    cat/1.jpg, cat/kittens/2.jpg       cat
    train/cat/1.jpg, val/cat/2.jpg     cat: the first folders are splits, as there are class folders in them
    train/1.jpg beside bus/1.jpg       train: a folder with images directly in it is a class, whatever its name
    images/cat/1.jpg                   cat, if all images are in images/
    tiny-imagenet-200/val/images/1.JPEG   from val_annotations.txt; similarly for the other public data sets

`lookalike.data.image_folder` reads class folders for training by the same rules, and raises an error if they are
ambiguous.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from lookalike.data.catalog import UNLABELLED
from lookalike.data.image_folder import SPLIT_NAMES
from lookalike.data.registry import homes_near
from lookalike.data.scan import has_image, is_hidden, printable
from lookalike.errors import InputError

# Names of folders that contain all images of a data set and are no classes, if no other folders are beside them
CONTAINERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "car_ims", "cars_train", "cars_test"})
MAX_DEPTH = 4  # of the folders above the classes
MAX_SCANNED = 20  # folders beside one another that are scanned for images
LIST_EXTENSIONS = frozenset({".txt", ".mat", ".csv", ".m", ".md"})  # of the lists of known data sets

Children = Callable[[str], set[str]]  # from a folder ("" is the root) to its subfolders with images at any depth


class FolderLabels:
    """The labels of the images below a folder.

    Args:
        root: the folder, absolute.

    Attributes:
        notes: remarks for a person; complete after the first label.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.notes: list[str] = []

    def of(self, path: str) -> tuple[str | None, str | None]:
        """Class and split of an image; None if not known.

        Args:
            path: of a file below the root.
        """
        known = self._known.get(path)
        if known is not None or any(path.startswith(home) for home in self._homes):
            return known or (None, None)
        return class_folder(path[len(self.root) + 1 :], self._tops), None

    @property
    def is_known(self) -> bool:
        """Whether a public data set with lists of labels is at, above or directly below the root."""
        return bool(self._homes)

    @cached_property
    def _tops(self) -> frozenset[str]:
        return tops_of(self._children, self.notes)

    @cached_property
    def _homes(self) -> list[str]:
        return [f"{home}/" for home in self._read[0]]

    @cached_property
    def _known(self) -> dict[str, tuple[str | None, str | None]]:
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[list[str], dict[str, tuple[str | None, str | None]]]:
        homes: list[str] = []
        found: dict[str, tuple[str | None, str | None]] = {}
        for known, home in homes_near(Path(self.root or "/")):
            try:
                catalog = known.read(home)
            except InputError as error:
                self.notes.append(
                    f"{known.title}: labels are taken from folders, since its lists cannot be used: {error.message}"
                )
                continue
            homes.append(str(home).rstrip("/"))
            for name, label, split in zip(catalog.paths, catalog.labels.tolist(), catalog.splits, strict=True):
                named = None if label == UNLABELLED else catalog.class_names[label]
                found[f"{homes[-1]}/{name}"] = named, str(split)
        return homes, found

    def _children(self, prefix: str) -> set[str]:
        folder = f"{self.root}/{prefix}"
        try:
            with os.scandir(folder) as entries:
                inside = [one.name for one in entries if not is_hidden(one.name) and _is_dir(one)]
        except OSError:
            return set()
        if len(inside) > MAX_SCANNED and not any(name.lower() in CONTAINERS | SPLIT_NAMES.keys() for name in inside):
            return set(inside)  # class folders, even if some have no images
        return {name for name in inside if has_image(f"{folder.rstrip('/')}/{name}")}


def class_folder(inside: str, tops: Iterable[str]) -> str | None:
    """The class in a path: the first folder that is not above the classes; None if there is none.

    Args:
        inside: the path of an image relative to the root.
        tops: folders above the classes; see `tops_of`.
    """
    prefix = ""
    for folder in inside.split("/")[:-1]:
        prefix = f"{prefix}/{folder}" if prefix else folder
        if prefix not in tops:
            return printable(folder)
    return None


def tops_of(children: Children, notes: list[str]) -> frozenset[str]:
    """The folders above the class folders: splits, `images/`, and folders that contain only such.

    Args:
        children: of the folders.
        notes: gets a remark if a folder has the name of a split and counts as a class.
    """
    return frozenset(_tops(children, "", notes, None, 0))


def children_of(names: Iterable[str]) -> Children:
    """The subfolders of each folder, from the paths of all images relative to the root."""
    inside: dict[str, set[str]] = defaultdict(set)
    for name in names:
        parts = name.split("/")[:-1]
        for end in range(min(len(parts), MAX_DEPTH)):
            inside["/".join(parts[:end])].add(parts[end])
    return lambda prefix: inside.get(prefix, set())


def _tops(children: Children, prefix: str, notes: list[str], classes: set[str] | None, depth: int) -> set[str]:
    """Such folders below a folder. `classes`: the folders in the training split, if this folder is below a split."""
    heads = children(prefix)
    if depth == MAX_DEPTH or not heads:
        return set()
    paths = {head: f"{prefix}/{head}" if prefix else head for head in heads}
    if {head.lower() for head in heads} <= CONTAINERS - (classes or set()):
        return {*paths.values(), *_below(children, paths.values(), notes, classes, depth)}
    splits = {head for head in heads if head.lower() in SPLIT_NAMES}
    inside = {head: children(paths[head]) for head in splits}
    if any(inside.values()):
        if splits == heads:
            trained = {name for head in splits for name in inside[head] if SPLIT_NAMES[head.lower()] == "train"}
            return {*paths.values(), *_below(children, paths.values(), notes, trained, depth)}
        other, split = min(heads - splits), min(splits)
        notes.append(f"{paths[split]}/ counts as a class, not as a split, since {paths[other]}/ is beside it")
    if (
        len(heads) == 1
        and not splits
        and classes is None
        and _has_classes_deeper(children, min(paths.values()), depth + 1)
    ):
        return {*paths.values(), *_below(children, paths.values(), notes, classes, depth)}
    return set()


def _has_classes_deeper(children: Children, folder: str, depth: int) -> bool:
    """Whether the only folder is no class: it contains splits, or several classes in `images/`."""
    below = _tops(children, folder, [], None, depth)
    return any(top.rpartition("/")[2].lower() not in CONTAINERS or len(children(top)) > 1 for top in below)


def _below(
    children: Children, folders: Iterable[str], notes: list[str], classes: set[str] | None, depth: int
) -> Iterable[str]:
    return {top for folder in folders for top in _tops(children, folder, notes, classes, depth + 1)}


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
