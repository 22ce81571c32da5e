"""The public data sets that are known by their layout: how each is recognised, read and copied."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lookalike.data import cars196, cub200, stanford_products, tiny_imagenet
from lookalike.data.catalog import Catalog
from lookalike.data.folder import Tree, is_image

ABOVE = 3  # folders above one of a set's images folders, at most
FEW = 50  # folders of data sets in one folder; where there are more, they are taken for classes


@dataclass(frozen=True)
class Known:
    """One of them.

    Args:
        name: what its catalogs are called.
        title: what it is called in messages.
        looks_like: whether a folder or zip is it.
        is_home: whether a folder is the set's own, by a few names at its top.
        read: reads it.
        top_of: the part of a tree's names above the set.
        is_part: whether a file of that name belongs to it.
    """

    name: str
    title: str
    looks_like: Callable[[Path], bool]
    is_home: Callable[[Path], bool]
    read: Callable[[Path], Catalog]
    top_of: Callable[[Tree], str]
    is_part: Callable[[str], bool]


def _is_part_of_tiny(name: str) -> bool:
    return is_image(name) or name.endswith(".txt")


KNOWN: tuple[Known, ...] = (
    Known(
        tiny_imagenet.NAME,
        "Tiny ImageNet",
        tiny_imagenet.looks_like_tiny_imagenet,
        tiny_imagenet.is_home,
        tiny_imagenet.read_tiny_imagenet,
        tiny_imagenet.top_of,
        _is_part_of_tiny,
    ),
    Known(
        cub200.NAME,
        "CUB-200-2011",
        cub200.looks_like_cub200,
        cub200.is_home,
        cub200.read_cub200,
        cub200.top_of,
        cub200.is_part,
    ),
    Known(
        stanford_products.NAME,
        "Stanford Online Products",
        stanford_products.looks_like_stanford_products,
        stanford_products.is_home,
        stanford_products.read_stanford_products,
        stanford_products.top_of,
        stanford_products.is_part,
    ),
    Known(
        cars196.NAME,
        "Cars196",
        cars196.looks_like_cars196,
        cars196.is_home,
        cars196.read_cars196,
        cars196.top_of,
        cars196.is_part,
    ),
)


def recognise(path: Path) -> Known | None:
    """The known set that lies in a folder or zip; None for pictures of one's own.

    Raises:
        InputError: a file that is no whole zip.
    """
    return next((known for known in KNOWN if known.looks_like(path)), None)


def homes_near(folder: Path) -> list[tuple[Known, Path]]:
    """The known sets that a folder is, lies in, or holds, by their own folders; links in its path are kept."""
    here = Path(os.path.abspath(folder))  # noqa: PTH100  (Path.resolve would follow links)
    for home in [here, *list(here.parents)[:ABOVE]]:
        if (known := _at(home)) is not None:
            return [(known, home)]
    found: list[tuple[Known, Path]] = []
    children = _folders_in(here)
    for child in children:
        if (known := _at(child)) is not None:
            found.append((known, child))
        elif len(children) <= FEW:
            found += [(known, below) for below in _folders_in(child) if (known := _at(below)) is not None]
    return found


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not child.name.startswith(".") and child.is_dir())
    except OSError:
        return []


def _at(home: Path) -> Known | None:
    try:
        return next((known for known in KNOWN if known.is_home(home)), None)
    except OSError:  # a folder that may not be looked into
        return None


def title_of(name: str) -> str | None:
    """What the known set of this name is called in messages; None when there is none."""
    return next((known.title for known in KNOWN if known.name == name), None)
