"""The public data sets that are known by their layout: how each is recognised, read and copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lookalike.data import cars196, cub200, stanford_products, tiny_imagenet
from lookalike.data.catalog import Catalog
from lookalike.data.folder import Tree, is_image


@dataclass(frozen=True)
class Known:
    """One of them.

    Args:
        name: what its catalogs are called.
        title: what it is called in messages.
        looks_like: whether a folder or zip is it.
        read: reads it.
        top_of: the part of a tree's names above the set.
        is_part: whether a file of that name belongs to it.
    """

    name: str
    title: str
    looks_like: Callable[[Path], bool]
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
        tiny_imagenet.read_tiny_imagenet,
        tiny_imagenet.top_of,
        _is_part_of_tiny,
    ),
    Known(
        cub200.NAME,
        "CUB-200-2011",
        cub200.looks_like_cub200,
        cub200.read_cub200,
        cub200.top_of,
        cub200.is_part,
    ),
    Known(
        stanford_products.NAME,
        "Stanford Online Products",
        stanford_products.looks_like_stanford_products,
        stanford_products.read_stanford_products,
        stanford_products.top_of,
        stanford_products.is_part,
    ),
    Known(
        cars196.NAME,
        "Cars196",
        cars196.looks_like_cars196,
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


def title_of(name: str) -> str | None:
    """What the known set of this name is called in messages; None when there is none."""
    return next((known.title for known in KNOWN if known.name == name), None)
