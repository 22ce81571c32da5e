"""Import a folder, zip or Parquet copy as a data set with a name.

A public data set (see `lookalike.data.registry`) and class folders, or a zip of either, are copied as they are. A
Hugging Face Parquet copy is unpacked: Tiny ImageNet into its official layout, others into class folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lookalike.data.hugging_face import Copy, shards_at, unpack
from lookalike.data.image_folder import Tree, is_image, open_zip, read_folder
from lookalike.data.image_folder import top_of as top_of_folders
from lookalike.data.registry import DATASETS, recognise_dataset
from lookalike.data.scan import read_regular
from lookalike.data.tiny_imagenet import NAME as TINY
from lookalike.data.unpack import unpack_zip
from lookalike.errors import InputError
from lookalike.files import atomic_folder, sweep
from lookalike.image import MAX_BYTES

TABLES = {".csv", ".tsv"}

Progress = Callable[[int, int], None]


def import_dataset(source: str | Path, name: str, into: Path, *, progress: Progress | None = None) -> Path:
    """Copy a source into a new data set. The data set is complete and on the disk, or absent.

    Args:
        source: the folder or zip of a public data set, class folders or a zip of them, or a Hugging Face Parquet copy
            (one file or the folder of its shards).
        name: letters, digits, `-`, `_` and `.`.
        into: the folder of all data sets.
        progress: called with (files done, files in all).

    Returns:
        The new folder, `into/name`, which `load_dataset` finds by its name.

    Raises:
        InputError: a bad or existing name, a source that cannot be read, a table (which needs no import), the name of a
            public data set for something else, or a full disk.
    """
    source, into = Path(source).expanduser(), Path(into)
    target = _target(name, into)
    if source.suffix.lower() in TABLES:
        raise InputError(f"{source}: a table need not be imported.", f"Use it where it lies: --data {source}")
    sweep(into, ".*-????????.partial", locked=True)
    with atomic_folder(target, durable=True) as beside:
        if shards := shards_at(source):
            unpack(Copy(source, shards), beside, tiny_imagenet=name == TINY, progress=progress)
        else:
            _copy(source, beside, progress)
        _check(source, beside, name)
    return target


def _target(name: str, into: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == "builtin":
        raise InputError(f"'{name}' cannot name a data set.", "Use letters, digits, '-', '_' and '.'.")
    target = into / name
    if target.exists():
        raise InputError(f"{target}: there is a data set of this name.", "Choose another name, or remove that folder.")
    return target


def _check(source: Path, folder: Path, name: str) -> None:
    """Read the new data set, as `load_dataset` will."""
    known = recognise_dataset(folder)
    if name in DATASETS and (known is None or known.name != name):
        raise InputError(f"{source}: this is not {DATASETS[name].title}.", "Give it another name.")
    (read_folder if known is None else known.read)(folder)


def _copy(source: Path, target: Path, progress: Progress | None) -> None:
    """Copy a folder or unpack a zip, without the folders above its classes: images, and lists of a public data set."""
    known = recognise_dataset(source)
    (read_folder if known is None else known.read)(source)  # raises the errors that reading would raise later
    tree = Tree.open(source)
    top = (top_of_folders if known is None else known.top_of)(tree)
    is_part = is_image if known is None else known.is_part
    places = {name: name.removeprefix(top) for name in tree.files if name.startswith(top) and is_part(name)}
    if tree.container == "zip":
        with open_zip(source) as archive:
            for name in places:
                if archive.getinfo(name).file_size > MAX_BYTES:
                    raise _too_large(source / name)
        unpack_zip(source, target, places=places, progress=progress)
        return
    for done, (name, place) in enumerate(places.items(), start=1):
        try:
            data = read_regular(source / name, MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"{source / name}: cannot be read ({error.strerror}).", "Restore it.") from None
        if len(data) > MAX_BYTES:
            raise _too_large(source / name)
        _write(target / place, data)
        _report(progress, done, len(places))


def _too_large(path: Path) -> InputError:
    return InputError(f"{path}: more than {MAX_BYTES // 2**20} MiB are too many for an image.", "Remove it.")


def _write(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None and (done % 500 == 0 or done == total):
        progress(done, total)
