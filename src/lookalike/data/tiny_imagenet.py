"""Tiny ImageNet in its official layout, from the unpacked folder or straight from `tiny-imagenet-200.zip`.

tiny-imagenet-200/wnids.txt                       the WordNet ids of the 200 classes
                  words.txt                       WordNet id, tab, words
                  train/WNID/images/*.JPEG        500 images a class
                  val/images/*.JPEG               10,000 images, labelled by val/val_annotations.txt
                  test/images/*.JPEG              10,000 images, labels never published

Source: CS231n, Stanford, 2015. Labels are the positions in the sorted WordNet ids. The boxes that come with the images
are not read: whole images are classified, and a box in a catalog is what to cut out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from lookalike.data.catalog import UNLABELLED, Catalog, Row, Split
from lookalike.data.image_folder import Tree, is_image
from lookalike.data.spec import HUB, DatasetSpec, Mirror, RemoteFile
from lookalike.errors import InputError

NAME = "tiny-imagenet"
TITLE = "tiny-imagenet-200"
CLASSES = 200
COUNTS: dict[Split, int] = {"train": 100_000, "val": 10_000, "test": 10_000}

_WNID = re.compile(r"n\d{8}")


def read_tiny_imagenet(path: str | Path) -> Catalog:
    """Read Tiny ImageNet.

    A `val/` (or `test/`) that was sorted into class folders gives the same ids, labels and order as the official
    layout.

    Args:
        path: the folder `tiny-imagenet-200`, or the zip.

    Returns:
        The catalog. `class_ids` are the WordNet ids, `class_names` the first word of each; test images have the label
        -1; ids are the official paths. `remark` states what an incomplete copy lacks.

    Raises:
        InputError: another folder (its parent, a subfolder, an empty one), a damaged zip, a missing or malformed list,
            a label out of range, a class without training images.
    """
    path = Path(path)
    if path.is_dir():
        _check_folder(path)
    tree = Tree.open(path)
    return _Reader(tree, top_of(tree)).catalog()


def is_tiny_imagenet(path: Path) -> bool:
    """Whether this is Tiny ImageNet, whole or not, or its parent or a subfolder; looks at few files of a folder."""
    if path.is_dir():
        return is_home(path) or _remedy(path) is not None
    signs = re.compile(r"(.*/)?(wnids\.txt|val/val_annotations\.txt|train/n\d{8}/images/.*)")
    return any(signs.fullmatch(name) for name in Tree.open(path).files)


def is_home(folder: Path) -> bool:
    """Whether this is the data set's own folder. Others have WordNet ids in train/ too, but not these files."""
    train, lists = folder / "train", (folder / "wnids.txt", folder / "val" / "val_annotations.txt")
    return _has_wnids(train) and (any(one.is_file() for one in lists) or any(train.glob("n*/images")))


class _Reader:
    """Reads one tree; `top` is the part of its names before `train/`."""

    def __init__(self, tree: Tree, top: str) -> None:
        self.tree = tree
        self.paths = {name.removeprefix(top): name for name in tree.files if name.startswith(top)}
        self.empty = [name.removeprefix(top) for name in tree.empty_folders]
        self.wnids = self._wnids()
        self.label_of = {wnid: label for label, wnid in enumerate(self.wnids)}

    def catalog(self) -> Catalog:
        rows = [*self._train(), *self._val(), *self._test()]
        return Catalog.from_rows(
            sorted(rows, key=lambda row: (("train", "val", "test").index(row.split), row.id)),
            root=self.tree.root,
            class_names=self._words(),
            class_ids=self.wnids,
            name=NAME,
            container=self.tree.container,
            remark=_remark(rows, len(self.wnids)),
        )

    def _wnids(self) -> list[str]:
        inside = (*self.paths, *(f"{name}/nothing" for name in self.empty))
        folders = {name.split("/")[1] for name in inside if name.startswith("train/") and name.count("/") > 1}
        listed = set(self._text("wnids.txt").split()) if "wnids.txt" in self.paths else folders
        if unlisted := sorted(folders - listed):
            self._refuse(f"train/{unlisted[0]} is not in wnids.txt", "Remove the folder, or add its name to the list.")
        if len(listed) < 2:
            self._refuse(f"{len(listed)} classes in train/", "Two at least are needed: unpack the whole zip.")
        return sorted(listed)

    def _words(self) -> list[str]:
        """Return the first word of each class; all words if two share the first; with the id if they share all."""
        words = dict(line.split("\t", 1) for line in self._lines("words.txt") if "\t" in line)
        full = [words.get(wnid, wnid).strip() for wnid in self.wnids]
        short = [text.split(",")[0].strip() for text in full]
        often, all_of_them = Counter(short), Counter(full)
        return [
            brief if often[brief] == 1 else text if all_of_them[text] == 1 else f"{text} ({wnid})"
            for brief, text, wnid in zip(short, full, self.wnids, strict=True)
        ]

    def _train(self) -> Iterator[Row]:
        seen: set[str] = set()
        for name in self._images("train"):
            parts = name.split("/")
            if len(parts) < 3:
                self._refuse(f"{name} lies in no class folder", "Move it into train/WNID/images, or remove it.")
            wnid, file = parts[1], parts[-1]
            seen.add(wnid)
            yield Row(self.paths[name], self.label_of[wnid], "train", None, f"train/{wnid}/images/{file}")
        for wnid in self.wnids:
            if wnid not in seen:
                self._refuse(f"class {wnid} has no training images", "Restore them, or take its line from wnids.txt.")

    def _val(self) -> Iterator[Row]:
        known = self._annotations()
        rows: dict[str, Row] = {}
        for name in self._images("val"):  # "val/images" sorts before "val/n...": of two copies the official one is kept
            file = name.rpartition("/")[2]
            annotated = known.get(file)
            sorted_into = self._class_folder(name)
            if sorted_into and annotated and sorted_into != annotated:
                self._refuse(f"{name} is of class {annotated} in val_annotations.txt", "Unpack val/ again.")
            wnid = sorted_into or annotated
            if wnid is None:
                missing = "it has no line in val_annotations.txt" if known else "val/val_annotations.txt is missing"
                self._refuse(f"{name} has no label: {missing}", "Unpack val/ again.")
            rows.setdefault(file, Row(self.paths[name], self._label(wnid, name), "val", None, f"val/images/{file}"))
        if not rows:
            self._refuse("no images in val/", "Unpack the whole zip.")
        yield from rows.values()

    def _test(self) -> Iterator[Row]:
        for name in self._images("test"):
            wnid = self._class_folder(name)
            label = UNLABELLED if wnid is None else self._label(wnid, name)
            yield Row(self.paths[name], label, "test", None, f"test/images/{name.rpartition('/')[2]}")

    def _images(self, split: str) -> list[str]:
        return [name for name in self.paths if name.startswith(f"{split}/") and is_image(name)]

    @staticmethod
    def _class_folder(name: str) -> str | None:
        return next((part for part in name.split("/")[1:-1] if part != "images"), None)

    def _label(self, wnid: str, name: str) -> int:
        if wnid not in self.label_of:
            self._refuse(f"{name} has the label {wnid}, which is not in wnids.txt", "Restore wnids.txt or remove it.")
        return self.label_of[wnid]

    def _annotations(self) -> dict[str, str]:
        """Return the WordNet id of each validation image by file name."""
        name = "val/val_annotations.txt"
        known = {}
        for number, line in enumerate(self._lines(name), start=1):
            file, *rest = line.split() or [""]
            if not rest or not _WNID.fullmatch(rest[0]):
                self._refuse(f"{name}, line {number} is not 'file, class, box'", "Unpack this file again.")
            known[file] = rest[0]
        return known

    def _lines(self, name: str) -> list[str]:
        return self._text(name).splitlines() if name in self.paths else []

    def _text(self, name: str) -> str:
        return self.tree.read_text(self.paths[name])

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise InputError(f"{self.tree.root}: {what}.", remedy)


def _remark(rows: list[Row], classes: int) -> str:
    """Return what must be stated with results on an incomplete copy; the test images do not matter."""
    counts = Counter(row.split for row in rows)
    if classes == CLASSES and all(counts[split] == COUNTS[split] for split in ("train", "val")):
        return ""
    return (
        f"not the whole Tiny ImageNet: {classes} of {CLASSES} classes, {counts['train']:,} of {COUNTS['train']:,} "
        f"training and {counts['val']:,} of {COUNTS['val']:,} validation images"
    )


def top_of(tree: Tree) -> str:
    """Return the folders before `train/`: "" for the folder itself, `tiny-imagenet-200/` in the official zip.

    Raises:
        InputError: a zip with no such names, or with two data sets.
    """
    if tree.container == "folder":
        return ""
    tops = {match[1] for name in tree.files if (match := re.match(r"(.*?/)?train/n\d{8}/", name))}
    if len(tops) != 1:
        what = "no train/ with classes" if not tops else f"{len(tops)} data sets"
        raise InputError(f"{tree.root}: {what} in this zip.", "Use the official tiny-imagenet-200.zip.")
    return tops.pop() or ""


def _check_folder(path: Path) -> None:
    """Recognise folders that are given by mistake, and name the right one."""
    if (path / "train").is_dir() and _has_wnids(path / "train"):
        return
    remedy = _remedy(path) or "Use the folder that holds train/, val/ and wnids.txt, or the official zip."
    try:
        empty = not any(path.iterdir())
    except OSError as error:
        raise InputError(f"{path}: cannot be listed ({error.strerror}).", "Check its rights.") from None
    what = "this folder is empty" if empty else "this is not the Tiny ImageNet folder"
    raise InputError(f"{path}: {what}.", remedy)


def _remedy(path: Path) -> str | None:
    """Return what to do if the data set is below or above this folder, or a zip in it."""
    below = sorted(child for child in path.iterdir() if child.is_dir())
    for folder in [*below, *list(path.resolve().parents)[:3]]:
        if is_home(folder):
            return f"Use {folder}"
    packed = path / f"{TITLE}.zip"
    return f"Use {packed}" if packed.is_file() else None


def _has_wnids(folder: Path) -> bool:
    """Whether a folder has subfolders named like WordNet ids."""
    return folder.is_dir() and any(_WNID.fullmatch(child.name) and child.is_dir() for child in folder.iterdir())


def _is_part(name: str) -> bool:
    return is_image(name) or name.endswith(".txt")


_HUB_FOLDER = f"{HUB}/datasets/zh-plus/tiny-imagenet/resolve/b427d143d5e9bf39d5132c552063f3c5ba3facd6/data"
_SHARDS = ("train-00000-of-00001-1359597a978bc4fa.parquet", "valid-00000-of-00001-70d52db3c749a935.parquet")
# The server publishes no checksum: MD5 and size are those that many loaders of this zip expect.
_ZIP = RemoteFile(
    "tiny-imagenet-200.zip",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "md5:90528d7ca1a48142e341f4ef8d21d0de",
    248_100_043,
)

SPEC = DatasetSpec(
    name=NAME,
    title="Tiny ImageNet",
    about="objects and animals, 64 × 64 pixels; the labels of the test images were never published",
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    licence="non-commercial research",
    citation="Le and Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS231n, 2015",
    classes=CLASSES,
    counts=COUNTS,
    matches=is_tiny_imagenet,
    is_home=is_home,
    read=read_tiny_imagenet,
    top_of=top_of,
    is_part=_is_part,
    mirrors=(
        Mirror("cs231n.stanford.edu", (_ZIP,)),
        Mirror(
            "Hugging Face (zh-plus/tiny-imagenet)",
            tuple(RemoteFile(name, f"{_HUB_FOLDER}/{name}") for name in _SHARDS),
            remark="This copy has no test images, and its classes have WordNet ids for names.",
        ),
    ),
    size_bytes=248_100_043,
    layout=("train", "val"),
    images_per_class=True,
)
