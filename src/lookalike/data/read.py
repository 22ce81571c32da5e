"""One function that reads whatever a person has: a name, a folder, a zip, a table."""

from __future__ import annotations

from pathlib import Path

from lookalike.data.catalog import Catalog
from lookalike.data.folder import VAL_FRACTION, read_folder
from lookalike.data.known import recognise
from lookalike.data.tables import read_table
from lookalike.errors import InputError, nearest

BUILTIN = "builtin"  # drawn on the spot, see `lookalike.data.synthetic`
TABLES = {".csv", ".tsv", ".parquet"}
SHARDS = ("*.parquet", "data/*.parquet", "train/*.parquet", "default/train/*.parquet")  # as Hugging Face lays them out


def read(source: str | Path, *, val_fraction: float = VAL_FRACTION, split_seed: int = 0) -> Catalog:
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
    if (known := recognise(path)) is not None:
        return known.read(path)
    return read_folder(path, val_fraction=val_fraction, split_seed=split_seed)


def _find(source: str | Path) -> Path:
    """The path of an installed data set by its name, else the path itself."""
    from lookalike.data.sources import SOURCES, installed

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
