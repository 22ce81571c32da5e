"""Data sets by name, and `load_dataset`, which reads whatever a person has: a name, a folder, a zip or a table.

To add a data set:

1. Write `lookalike/data/NAME.py`: `read_NAME(path) -> Catalog` for its official layout, `is_NAME(path)`, which
   recognises it, and a `DatasetSpec` called `SPEC` with its facts (see `lookalike.data.spec`). `cub200.py` is the
   shortest example.
2. Add its `SPEC` to `DATASETS` below. `lookalike data list`, `download`, `check` and `import` then know it.
3. For a retrieval protocol, add one to `lookalike.evaluation.protocols` under the name that `SPEC.zero_shot` gives.
4. Write `tests/data/test_NAME.py` after `tests/data/test_cub200.py`, with a small and a damaged copy.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import platformdirs

from lookalike.data import cars196, cub200, stanford_products, tiny_imagenet
from lookalike.data.catalog import SPLITS, UNLABELLED, Catalog, Split
from lookalike.data.image_folder import VAL_FRACTION, read_folder
from lookalike.data.spec import DatasetSpec
from lookalike.data.tables import read_table
from lookalike.errors import InputError, nearest

# Recognised in this order; Cars196 is last, since it may have to look at all names of a folder.
DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec for spec in (tiny_imagenet.SPEC, cub200.SPEC, stanford_products.SPEC, cars196.SPEC)
}
BUILTIN = "builtin"  # drawn when it is first used, see `lookalike.data.synthetic`

TABLES = {".csv", ".tsv", ".parquet"}
SHARDS = (
    "*.parquet",
    "data/*.parquet",
    "train/*.parquet",
    "default/train/*.parquet",
)  # on the Hugging Face Hub
MAX_LEVELS_UP = 3  # folders above one of a data set's image folders
MAX_NEIGHBOURS = 50  # subfolders that are searched for data sets; more are taken for classes


def load_dataset(source: str | Path, *, val_fraction: float = VAL_FRACTION, split_seed: int = 0) -> Catalog:
    """Read a data set.

    A name takes precedence over a path: write `./builtin` for a folder of that name. The data sets of `DATASETS` are
    recognised by their files and keep their official splits. Any other folder or zip is read as class folders, and
    `.csv`, `.tsv` and `.parquet` files as tables.

    Args:
        source: "builtin", the name of a downloaded or imported data set, or the path of a folder, zip or table.
        val_fraction: share of each class's training images that becomes the validation split of folders and tables
            without one.
        split_seed: seed of that choice.

    Returns:
        The catalog.

    Raises:
        InputError: no data set of this name or path (the nearest name is suggested), or its files cannot be read.
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
    if (spec := recognise_dataset(path)) is not None:
        return spec.read(path)
    return read_folder(path, val_fraction=val_fraction, split_seed=split_seed)


def _find(source: str | Path) -> Path:
    """Return the path of an installed data set by its name, otherwise the path itself."""
    name = str(source)
    is_name = isinstance(source, str) and "/" not in name and "\\" not in name
    if is_name and (found := installed(name)) is not None:
        return found
    path = Path(source).expanduser()
    if path.exists():
        return path
    if is_name and name in DATASETS:
        raise InputError(f"{name} is not on this machine.", how_to_get(DATASETS[name]))
    known = [BUILTIN, *DATASETS]
    raise InputError(
        f"'{source}': no data set of this name, and no such file or folder.{nearest(name, known)}",
        f"Names: {', '.join(known)}. Or give the path of a folder, zip, CSV or Parquet file.",
    )


def how_to_get(spec: DatasetSpec) -> str:
    """Return what a person must do to get a data set that is not on this machine."""
    return f"Download it: lookalike data download {spec.name}" if spec.mirrors else spec.by_hand


def data_home() -> Path:
    """Return the folder of all data sets: $LOOKALIKE_DATA, or `data` in the user's data folder. It may not exist."""
    if chosen := os.environ.get("LOOKALIKE_DATA"):
        return Path(chosen).expanduser()
    return Path(platformdirs.user_data_dir("lookalike")) / "data"


def installed(name: str, home: Path | None = None) -> Path | None:
    """Return the folder of a data set that was downloaded or imported.

    Args:
        name: the data set.
        home: the folder of all data sets; by default `data_home()`.

    Returns:
        `home/name`; None if there is no such folder, if it does not have the layout of the public data set of this
        name, or if `name` is not a plain name (such as "..").
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        return None
    folder = (home or data_home()) / name
    layout = DATASETS[name].layout if name in DATASETS else ()
    return folder if folder.is_dir() and all((folder / part).exists() for part in layout) else None


# Recognising the public data sets by their files.


def recognise_dataset(path: Path) -> DatasetSpec | None:
    """Return the public data set that a folder or zip holds; None for a person's own images.

    Raises:
        InputError: the file is not a whole zip.
    """
    return next((spec for spec in DATASETS.values() if spec.matches(path)), None)


def homes_near(folder: Path) -> list[tuple[DatasetSpec, Path]]:
    """Return the public data sets that a folder is, lies in or holds, with their own folders.

    Symbolic links in the path are kept.
    """
    here = Path(os.path.abspath(folder))  # noqa: PTH100  (Path.resolve would follow links)
    for home in [here, *list(here.parents)[:MAX_LEVELS_UP]]:
        if (spec := _at(home)) is not None:
            return [(spec, home)]
    found: list[tuple[DatasetSpec, Path]] = []
    children = _folders_in(here)
    for child in children:
        if (spec := _at(child)) is not None:
            found.append((spec, child))
        elif len(children) <= MAX_NEIGHBOURS:
            found += [(spec, below) for below in _folders_in(child) if (spec := _at(below)) is not None]
    return found


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not child.name.startswith(".") and child.is_dir())
    except OSError:
        return []


def _at(home: Path) -> DatasetSpec | None:
    try:
        return next((spec for spec in DATASETS.values() if spec.is_home(home)), None)
    except OSError:  # a folder that may not be read
        return None


# Comparing a copy with the official facts.


def zero_shot_counts(catalog: Catalog) -> tuple[int, int] | None:
    """Return the numbers of images of the training and of the test classes of the zero-shot split, if there is one."""
    spec = DATASETS.get(catalog.name)
    if spec is None or spec.zero_shot is None:
        return None
    labels = catalog.labels[catalog.labels != UNLABELLED]
    return int((labels < spec.zero_shot.classes).sum()), int((labels >= spec.zero_shot.classes).sum())


def differences(catalog: Catalog) -> list[str]:
    """Return where a copy of a public data set differs from the official one, in words; empty for other catalogs."""
    if (spec := DATASETS.get(catalog.name)) is None:
        return []
    found = []
    labels = catalog.labels[catalog.labels != UNLABELLED]
    if (classes := len(np.unique(labels))) != spec.classes:
        found.append(f"{classes:,} classes with images, not {spec.classes:,}")
    for split in SPLITS:
        here, official = len(catalog.rows_of(split)), spec.counts.get(split, 0)
        if here != official:
            found.append(f"{split}: {here:,} images, not {official:,}")
        if spec.images_per_class:
            found += _differences_per_class(catalog, split, official // spec.classes)
    if len(catalog) != spec.images and not spec.images_per_class:
        found.append(f"{len(catalog):,} images in all, not {spec.images:,}")
    if (zero_shot := spec.zero_shot) is not None:
        first, last = zero_shot_counts(catalog) or (0, 0)
        if first != zero_shot.train:
            found.append(f"zero-shot, first {zero_shot.classes:,} classes: {first:,} images, not {zero_shot.train:,}")
        if last != zero_shot.test:
            others = spec.classes - zero_shot.classes
            found.append(f"zero-shot, last {others:,} classes: {last:,} images, not {zero_shot.test:,}")
    return found


def _differences_per_class(catalog: Catalog, split: Split, official: int) -> list[str]:
    labels = catalog.labels[catalog.rows_of(split)]
    if not len(labels) or (labels == UNLABELLED).any():
        return []
    numbers = np.bincount(labels, minlength=len(catalog.class_ids)).tolist()
    if len(set(numbers)) == 1 and numbers[0] != official:
        return [f"{split}: {numbers[0]} images a class, not {official}"]
    return [
        f"{split}, class {class_id}: {number} images, not {official}"
        for class_id, number in zip(catalog.class_ids, numbers, strict=True)
        if number != official
    ]
