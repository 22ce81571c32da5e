"""One function that reads whatever a person has: a name, a folder, a zip, a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookalike.data import cars196, cub200, stanford_products, tiny_imagenet
from lookalike.data.catalog import SPLITS, UNLABELLED, Catalog, Split
from lookalike.data.image_folder import VAL_FRACTION, Tree, is_image, read_folder
from lookalike.data.tables import read_table
from lookalike.errors import InputError, nearest

BUILTIN = "builtin"  # drawn on the spot, see `lookalike.data.synthetic`


TABLES = {".csv", ".tsv", ".parquet"}


SHARDS = ("*.parquet", "data/*.parquet", "train/*.parquet", "default/train/*.parquet")  # as Hugging Face lays them out


def load_dataset(source: str | Path, *, val_fraction: float = VAL_FRACTION, split_seed: int = 0) -> Catalog:
    """Read a data set; what it is gets decided by looking at it.

    A name stands before a path: write `./builtin` for a folder of that name. Tiny ImageNet, Cars196, CUB-200-2011 and
    Stanford Online Products are known by their lists (Cars196 also by the names of its classes) and keep their official
    splits; `with_drawn_validation` takes validation images from those that have none. Every other folder and zip is
    read as class folders; `.csv`, `.tsv` and `.parquet` are tables.

    Args:
        source: "builtin", the name of a downloaded or imported data set, or the path of a folder, zip or table.
        val_fraction: share of each class's training images for validation where a source of one's own names no val
            split.
        split_seed: which ones.

    Returns:
        The catalog, under the data set's name.

    Raises:
        InputError: nothing of that name or path (the nearest name is suggested), or what is there cannot be read.
    """
    if str(source) == BUILTIN:
        from lookalike.data import synthetic

        return synthetic.catalog()
    path = _find(source)
    if path.is_file() and path.suffix.lower() in TABLES:
        return read_table(path, val_fraction=val_fraction, split_seed=split_seed)
    for shard in (shard for pattern in SHARDS for shard in sorted(path.glob(pattern))):
        raise InputError(
            f"{path}: a folder with Parquet files, such as {shard.relative_to(path)}.",
            f"Import it (lookalike data import {path} --name NAME), or point at the one file that is a table.",
        )
    if (known := recognise_dataset(path)) is not None:
        return known.read(path)
    return read_folder(path, val_fraction=val_fraction, split_seed=split_seed)


def _find(source: str | Path) -> Path:
    """The path of an installed data set by its name, else the path itself."""
    from lookalike.data.download import SOURCES, installed

    name = str(source)
    is_name = isinstance(source, str) and "/" not in name and "\\" not in name
    if is_name and (found := installed(name)) is not None:
        return found
    path = Path(source).expanduser()
    if path.exists():
        return path
    if is_name and name in SOURCES:
        raise InputError(f"{name} is not on this machine.", f"Get it: lookalike data get {name}")
    known = [BUILTIN, *SOURCES]
    raise InputError(
        f"'{source}': no data set of this name, and no such file or folder.{nearest(name, known)}",
        f"Names: {', '.join(known)}. Or give the path of a folder, zip, CSV or Parquet file.",
    )


# The public data sets that are known by their layout: how each is recognised, read and copied.

ABOVE = 3  # folders above one of a set's images folders, at most


FEW = 50  # folders of data sets in one folder; where there are more, they are taken for classes


@dataclass(frozen=True)
class KnownDataset:
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


KNOWN: tuple[KnownDataset, ...] = (
    KnownDataset(
        tiny_imagenet.NAME,
        "Tiny ImageNet",
        tiny_imagenet.looks_like_tiny_imagenet,
        tiny_imagenet.is_home,
        tiny_imagenet.read_tiny_imagenet,
        tiny_imagenet.top_of,
        _is_part_of_tiny,
    ),
    KnownDataset(
        cub200.NAME,
        "CUB-200-2011",
        cub200.looks_like_cub200,
        cub200.is_home,
        cub200.read_cub200,
        cub200.top_of,
        cub200.is_part,
    ),
    KnownDataset(
        stanford_products.NAME,
        "Stanford Online Products",
        stanford_products.looks_like_stanford_products,
        stanford_products.is_home,
        stanford_products.read_stanford_products,
        stanford_products.top_of,
        stanford_products.is_part,
    ),
    KnownDataset(
        cars196.NAME,
        "Cars196",
        cars196.looks_like_cars196,
        cars196.is_home,
        cars196.read_cars196,
        cars196.top_of,
        cars196.is_part,
    ),
)


def recognise_dataset(path: Path) -> KnownDataset | None:
    """The known set that lies in a folder or zip; None for pictures of one's own.

    Raises:
        InputError: a file that is no whole zip.
    """
    return next((known for known in KNOWN if known.looks_like(path)), None)


def homes_near(folder: Path) -> list[tuple[KnownDataset, Path]]:
    """The known sets that a folder is, lies in, or holds, by their own folders; links in its path are kept."""
    here = Path(os.path.abspath(folder))  # noqa: PTH100  (Path.resolve would follow links)
    for home in [here, *list(here.parents)[:ABOVE]]:
        if (known := _at(home)) is not None:
            return [(known, home)]
    found: list[tuple[KnownDataset, Path]] = []
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


def _at(home: Path) -> KnownDataset | None:
    try:
        return next((known for known in KNOWN if known.is_home(home)), None)
    except OSError:  # a folder that may not be looked into
        return None


def title_of(name: str) -> str | None:
    """What the known set of this name is called in messages; None when there is none."""
    return next((known.title for known in KNOWN if known.name == name), None)


# What the public sets for retrieval hold officially, and where a copy differs from it.


@dataclass(frozen=True)
class OfficialFacts:
    """A whole set.

    Args:
        title: what it is called in messages.
        classes: how many it has.
        counts: images of each split.
        first: classes, in label order, that zero-shot retrieval trains on; it is tested on the others.
        zero_shot: images of the first classes, and of the others.
    """

    title: str
    classes: int
    counts: dict[Split, int]
    first: int
    zero_shot: tuple[int, int]


SETS: dict[str, OfficialFacts] = {
    cars196.NAME: OfficialFacts("Cars196", cars196.CLASSES, cars196.COUNTS, cars196.FIRST, cars196.ZERO_SHOT),
    cub200.NAME: OfficialFacts("CUB-200-2011", cub200.CLASSES, cub200.COUNTS, cub200.FIRST, cub200.ZERO_SHOT),
    stanford_products.NAME: OfficialFacts(
        "Stanford Online Products",
        stanford_products.CLASSES,
        stanford_products.COUNTS,
        stanford_products.CLASSES_OF["train"],
        (stanford_products.COUNTS["train"], stanford_products.COUNTS["test"]),
    ),
}


def zero_shot_counts(catalog: Catalog) -> tuple[int, int] | None:
    """Images of the classes that zero-shot retrieval trains on, and of those it is tested on; None for other sets."""
    if (official := SETS.get(catalog.name)) is None:
        return None
    known = catalog.labels[catalog.labels != UNLABELLED]
    return int((known < official.first).sum()), int((known >= official.first).sum())


def differences(catalog: Catalog) -> list[str]:
    """Where a copy of one of these sets is not the official one, in words; none for other sets."""
    if (official := SETS.get(catalog.name)) is None:
        return []
    found = []
    with_images = len(np.unique(catalog.labels[catalog.labels != UNLABELLED]))
    if with_images != official.classes:
        found.append(f"{with_images:,} classes with images, not {official.classes:,}")
    for split in SPLITS:
        here, whole = len(catalog.rows_of(split)), official.counts.get(split, 0)
        if here != whole:
            found.append(f"{split}: {here:,} images, not {whole:,}")
    if len(catalog) != (total := sum(official.counts.values())):
        found.append(f"{len(catalog):,} images in all, not {total:,}")
    last = official.classes - official.first
    for here, whole, which in zip(
        zero_shot_counts(catalog) or (),
        official.zero_shot,
        (f"first {official.first:,} classes", f"last {last:,} classes"),
        strict=True,
    ):
        if here != whole:
            found.append(f"zero-shot, {which}: {here:,} images, not {whole:,}")
    return found
