"""Unpack Parquet copies of data sets, as on the Hugging Face Hub, into image files.

A copy is one file, or a folder of shards such as `data/train-00000-of-00002.parquet`. Images are a struct with `bytes`
(or plain binary); the names of the classes are in the metadata of the schema, under "huggingface".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data.catalog import Split
from lookalike.data.image_folder import SPLIT_NAMES
from lookalike.data.tables import holds_images, not_whole, read_schema
from lookalike.data.tiny_imagenet import CLASSES
from lookalike.data.unpack import ZipLimits
from lookalike.errors import InputError

BATCH = 64  # images in memory at a time
EXTENSIONS_BY_MAGIC = {  # first bytes of a file to its extension
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P5": "pgm",
    b"P6": "ppm",
}

TRUSTED = "Use a copy from a source that you trust."

Progress = Callable[[int, int], None]


def shards_at(source: Path) -> list[Path]:
    """Return the Parquet files of a file or folder, sorted; an empty list for anything else.

    Raises:
        InputError: a shard such as `-00000-of-00003` is missing.
    """
    if source.is_file():
        return [source] if source.suffix.lower() == ".parquet" else []
    inside = (shard.relative_to(source) for shard in source.rglob("*.parquet"))
    shards = sorted(source / shard for shard in inside if not any(part.startswith(".") for part in shard.parts))
    groups: Counter[tuple[Path, str, int]] = Counter()
    for shard in shards:
        if match := re.match(r"(.*)-\d{5}-of-(\d{5})", shard.name):
            groups[shard.parent, match[1], int(match[2])] += 1
    for (folder, name, count), there in groups.items():
        if there < count:
            raise InputError(f"{folder}: {there} of {count} '{name}' files are here.", "Download the others, too.")
    return shards


class Copy:
    """A Parquet copy to read.

    Args:
        source: the file or folder.
        shards: its Parquet files.

    Raises:
        InputError: a damaged file, shards with different columns or classes or of an unknown split, no column of images
            or labels.
    """

    def __init__(self, source: Path, shards: list[Path]) -> None:
        self.source = source
        self.shards = [(_split_of(source, shard), shard) for shard in shards]
        self.schema = read_schema(shards[0])
        self.features = _features(self.schema)
        self.image = self._image_column()
        self.label = self._label_column()
        self.classes = _class_names(self.features, self.label)  # in label order; None if the labels are the names
        for shard in shards[1:]:
            schema = read_schema(shard)
            if schema.names != self.schema.names:
                self._refuse_shard(shard, "columns")
            if _class_names(_features(schema), self.label) != self.classes:
                self._refuse_shard(shard, "classes")

    @cached_property
    def total(self) -> int:
        """Number of images in all shards."""
        return sum(pq.read_metadata(shard).num_rows for _, shard in self.shards)

    def rows(self) -> Iterator[tuple[Split, str | None, bytes]]:
        """Yield split, class (None if unknown) and file content of each image.

        Raises:
            InputError: a damaged shard, a label out of range, a row without an image.
        """
        for split, shard in self.shards:
            number = 0
            try:
                for batch in pq.ParquetFile(shard).iter_batches(BATCH, columns=[self.image, self.label]):
                    for record in batch.to_pylist():
                        number += 1
                        where = f"{shard}, row {number}"
                        yield split, self._class_of(record[self.label], where), _bytes_of(record[self.image], where)
            except (OSError, pa.ArrowException) as error:
                raise not_whole(shard, error) from None

    def _class_of(self, label: Any, where: str) -> str | None:
        if label is None or label in (-1, ""):
            return None
        if self.classes is None:
            return str(label)
        if label not in range(len(self.classes)):
            last = len(self.classes) - 1
            raise InputError(f"{where}: no class has the label {label}.", f"Labels run from 0 to {last}.")
        return self.classes[int(label)]

    def _image_column(self) -> str:
        named = [name for name, feature in self.features.items() if feature.get("_type") == "Image"]
        for name in named or self.schema.names:
            if holds_images(self.schema.field(name).type):
                return name
        raise InputError(f"{self.source}: no column with images in it.", "Use a copy that holds the images themselves.")

    def _label_column(self) -> str:
        labels = [name for name, feature in self.features.items() if feature.get("_type") == "ClassLabel"]
        choice = [name for name in ("label", "labels") if name in self.schema.names] or labels
        if len(choice) != 1:
            there = ", ".join(self.schema.names)
            raise InputError(
                f"{self.source}: no column 'label'.", f"Rename the one with the classes; there are: {there}."
            )
        return choice[0]

    def _refuse_shard(self, shard: Path, what: str) -> NoReturn:
        raise InputError(f"{shard}: its {what} differ from those of {self.shards[0][1].name}.", "Import one set only.")


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the metadata of each column that exists."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    try:
        features = dict(json.loads(metadata)["info"]["features"]) if metadata else {}
    except (ValueError, KeyError, TypeError, RecursionError):  # written by another program: use the columns alone
        features = {}
    return {name: about for name, about in features.items() if isinstance(about, dict) and name in schema.names}


def _class_names(features: dict[str, dict[str, Any]], label: str) -> tuple[str, ...] | None:
    names = features.get(label, {}).get("names")
    try:
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=int)]
        return None if names is None else tuple(map(str, names))
    except (ValueError, TypeError):
        raise InputError(
            f"the schema's metadata do not say which classes '{label}' has.", "Mend 'names' in them, or take them out."
        ) from None


def _split_of(source: Path, shard: Path) -> Split:
    """Return the split in the name of a shard or its folder; "train" for a single file without one."""
    words = [re.split(r"[-_.]", shard.name)[0], shard.parent.name]
    for word in words:
        if word.lower() in SPLIT_NAMES:
            return SPLIT_NAMES[word.lower()]
    if shard == source:
        return "train"
    raise InputError(f"{shard}: is it train, val or test?", "Name the files like train-00000-of-00001.parquet.")


def _bytes_of(value: Any, where: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        raise InputError(f"{where}: no image in it.", "Use a copy that holds the images themselves.")
    return bytes(data)


def unpack(copy: Copy, target: Path, *, tiny_imagenet: bool = False, progress: Progress | None = None) -> None:
    """Write the images of a copy as files, in the order of the copy.

    Tiny ImageNet, recognised by 200 classes with WordNet ids for names, is written in its official layout (with
    `words.txt`, if it is beside the shards); other data sets as class folders below their splits.

    Args:
        copy: the copy.
        target: an empty folder.
        tiny_imagenet: treat it as Tiny ImageNet also with fewer classes.
        progress: called with (images done, images in all).

    Raises:
        InputError: damaged shards, unlabelled training images, classes whose names make the same folder, or more data
            than `lookalike.data.unpack.ZipLimits` allows for shards of this size.
    """
    limits = ZipLimits()
    budget = limits.allowed(sum(shard.stat().st_size for _, shard in copy.shards))
    if copy.total > limits.files:
        raise InputError(f"{copy.source}: {copy.total:,} images, more than {limits.files:,}.", TRUSTED)
    names = copy.classes or ()
    are_wnids = bool(names) and all(re.fullmatch(r"n\d{8}", name) for name in names)
    tiny = are_wnids and (len(names) == CLASSES or tiny_imagenet)
    folders: dict[str, str] = {}
    count: Counter[tuple[str, str]] = Counter()
    annotations = []
    for done, (split, class_name, data) in enumerate(copy.rows(), start=1):
        if class_name is None and split != "test":
            raise InputError(
                f"{copy.source}: image {done} is in {split} and has no label.", "Label it or leave it out."
            )
        budget -= len(data)
        if budget < 0:
            raise InputError(f"{copy.source}: more images come out of it than shards of this size hold.", TRUSTED)
        kind = _extension(data, f"{copy.source}: image {done}")
        of_class = "" if class_name is None else _folder_name(class_name, folders, copy.source)
        group = "" if tiny and split != "train" else of_class
        number = count[split, group]
        count[split, group] += 1
        if tiny:
            name = f"{group or split}_{number}.{'JPEG' if kind == 'jpg' else kind}"
            if split == "val":
                annotations.append(f"{name}\t{class_name}\n")
            place = target / split / group / "images" / name
        else:
            place = target / split / group / f"{number:06d}.{kind}"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        except OSError as error:
            where = f"{copy.source}: image {done}, of the class '{class_name:.40}'" if class_name else f"{target}"
            raise InputError(f"{where}: cannot be written ({error.strerror}).", "Choose another folder.") from None
        if progress is not None and (done % 500 == 0 or done == copy.total):
            progress(done, copy.total)
    if tiny:
        wnids = sorted(class_name for split, class_name in count if split == "train")
        (target / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids), encoding="utf-8")
        (target / "val").mkdir(exist_ok=True)
        (target / "val" / "val_annotations.txt").write_text("".join(annotations), encoding="utf-8")
        words = copy.source / "words.txt"
        if words.is_file():
            (target / "words.txt").write_bytes(words.read_bytes())


def _extension(data: bytes, where: str) -> str:
    for magic, extension in EXTENSIONS_BY_MAGIC.items():
        if data.startswith(magic):
            return extension
    raise InputError(f"{where}: not an image in a format that can be read.", "Leave it out of the copy.")


def _folder_name(class_name: str, taken: dict[str, str], source: Path) -> str:
    """Return the folder of a class: its name without characters that folder names cannot have."""
    name = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "-", class_name).strip() or "-"
    name = "-" + name[1:] if name.startswith(".") else name
    if taken.setdefault(name, class_name) != class_name:
        raise InputError(f"{source}: the classes '{taken[name]}' and '{class_name}' are one folder.", "Rename one.")
    return name
