"""The facts about a public data set: `DatasetSpec`, which every module of such a data set defines once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lookalike.data.catalog import SPLITS, Catalog, Split
from lookalike.data.image_folder import Tree

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Args:
        name: its name on disk.
        url: its address.
        checksum: `md5:` or `sha256:` and the published digest in hex; empty for a file on the Hugging Face Hub, which
            sends the SHA-256 and the size itself.
        size_bytes: its length; None if only the server knows it.
    """

    name: str
    url: str
    checksum: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True)
class Mirror:
    """A server that has a whole data set, in one file or several.

    Args:
        name: its name in messages.
        files: all of them are needed.
        remark: what a person who downloads this copy should know.
    """

    name: str
    files: tuple[RemoteFile, ...]
    remark: str = ""


@dataclass(frozen=True)
class ZeroShot:
    """The zero-shot split of a retrieval data set: train on the first classes, test on the others.

    Args:
        protocol: the name of the protocol in `lookalike.evaluation.protocols`.
        classes: number of classes, in label order, to train on.
        train: images of these classes.
        test: images of the other classes.
    """

    protocol: str
    classes: int
    train: int
    test: int


@dataclass(frozen=True)
class DatasetSpec:
    """A public data set: its official facts, how to get it, how to recognise and read its files.

    Args:
        name: the name that `load_dataset` takes and that its catalogs have.
        title: the name in messages.
        about: one line: what the images show, their size.
        url: the home page.
        licence: the conditions of use, as published.
        citation: the paper.
        classes: number of classes.
        counts: images of each split.
        matches: whether a folder or zip is this data set, whole or not. Called for any path that a person gives.
        is_home: whether a folder is the data set's own folder; looks at a few names only.
        read: reads the folder or zip. Raises InputError for missing or damaged lists.
        top_of: the part of a tree's file names above the data set's own folders.
        is_part: whether a file of this name belongs to the data set.
        mirrors: where to download it, the official server first; empty if it must be fetched by hand.
        size_bytes: length of the download from the first mirror.
        by_hand: how to get it without a mirror.
        layout: entries that the unpacked folder has at its top, in every copy.
        images_per_class: whether all classes have the same number of images in each labelled split.
        zero_shot: the split for retrieval, if there is one.
    """

    name: str
    title: str
    about: str
    url: str
    licence: str
    citation: str
    classes: int
    counts: dict[Split, int]
    matches: Callable[[Path], bool]
    is_home: Callable[[Path], bool]
    read: Callable[[Path], Catalog]
    top_of: Callable[[Tree], str]
    is_part: Callable[[str], bool]
    mirrors: tuple[Mirror, ...] = ()
    size_bytes: int | None = None
    by_hand: str = ""
    layout: tuple[str, ...] = ()
    images_per_class: bool = False
    zero_shot: ZeroShot | None = None

    @property
    def images(self) -> int:
        return sum(self.counts.values())

    @property
    def summary(self) -> str:
        """Classes and images in words, such as "196 classes; 8,144 train, 8,041 test images"."""
        counts = ", ".join(f"{self.counts[split]:,} {split}" for split in SPLITS if split in self.counts)
        return f"{self.classes:,} classes; {counts} images"
