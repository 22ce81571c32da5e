"""The catalog: one table that says which images there are, what each shows and which split it belongs to.

A catalog is a thin, immutable view of an Arrow table with the columns

    id     string   unique within the catalog, stable across machines (the path relative to the root, as a rule)
    path   string   relative to `root`; with `container="zip"` the name of the member in the zip file that `root` is
    label  int32    index into `class_names`, -1 where it is not known
    split  string   "train", "val" or "test"
    box    list<int32>[4]  left, top, right, bottom in pixels; null where it is not known

and the metadata below. It is written to and read from Parquet unchanged.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.data.scan import modified_ns, read_regular
from lookalike.errors import InputError
from lookalike.files import atomic_file
from lookalike.image import MAX_BYTES

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
UNLABELLED = -1

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("box", pa.list_(pa.int32(), 4)),
    ]
)


@dataclass(frozen=True)
class Row:
    """One image: the way readers hand it to `Catalog.from_rows`."""

    path: str
    label: int
    split: Split
    box: tuple[int, int, int, int] | None = None
    id: str = ""


@dataclass(frozen=True)
class Catalog:
    """The images of one data set, in a fixed order.

    Args:
        table: an Arrow table with the columns of `SCHEMA`.
        root: the folder the paths are relative to, or the zip file they are members of.
        class_names: a person's word for each label, in label order.
        class_ids: the data set's own name of each label (a WordNet id, a folder name), in label order.
        name: what the data set is called in reports and receipts.
        container: `"folder"` or `"zip"`.
        remark: what must be said beside every number measured on it (a reduced or cropped copy, say), or "".
        passed_over: how many files of each kind in its folder or zip are no images by name (see `lookalike.data.scan`).
    """

    table: pa.Table
    root: Path
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    name: str
    container: Literal["folder", "zip"] = "folder"
    remark: str = ""
    passed_over: Mapping[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Row],
        *,
        root: Path,
        class_names: Sequence[str],
        name: str,
        class_ids: Sequence[str] | None = None,
        container: Literal["folder", "zip"] = "folder",
        remark: str = "",
        passed_over: Mapping[str, int] | None = None,
    ) -> Catalog:
        """Build a catalog from rows, checking labels, splits and the uniqueness of ids.

        Raises:
            InputError: no rows, a label outside `class_names`, or an id that occurs twice.
        """
        rows = list(rows)
        if not rows:
            raise InputError(f"{root}: no images found.", "Point at a folder, zip or table that holds images.")
        if len(set(class_names)) != len(class_names):
            name_twice = next(name for place, name in enumerate(class_names) if name in class_names[:place])
            raise InputError(f"{root}: two classes are called '{name_twice}'.", "Give each a name of its own.")
        ids = [row.id or row.path for row in rows]
        if len(set(ids)) != len(ids):
            seen: set[str] = set()
            twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise InputError(f"{root}: the id '{twice}' occurs twice.", "Give every image an id of its own.")
        for row in rows:
            if not UNLABELLED <= row.label < len(class_names):
                raise InputError(
                    f"{root}: '{row.path}' has label {row.label}, which no class has.",
                    f"Labels run from 0 to {len(class_names) - 1}; -1 means unknown.",
                )
        table = pa.table(
            {
                "id": ids,
                "path": [row.path for row in rows],
                "label": pa.array([row.label for row in rows], pa.int32()),
                "split": [row.split for row in rows],
                "box": pa.array([row.box for row in rows], pa.list_(pa.int32(), 4)),
            },
            schema=SCHEMA,
        )
        ids_of_classes = tuple(class_ids) if class_ids is not None else tuple(class_names)
        return cls(table, Path(root), tuple(class_names), ids_of_classes, name, container, remark, passed_over or {})

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def ids(self) -> list[str]:
        return self.table.column("id").to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def paths(self) -> list[str]:
        return self.table.column("path").to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels as int32, shape (N,); -1 where unknown."""
        return self.table.column("label").to_numpy().astype(np.int32)  # type: ignore[no-any-return]

    @cached_property
    def splits(self) -> np.ndarray:
        """Splits as an array of str, shape (N,)."""
        return np.asarray(self.table.column("split").to_pylist())

    @cached_property
    def boxes(self) -> list[tuple[int, int, int, int] | None]:
        """Left, top, right, bottom in pixels of each image; None where there is no box."""
        return [tuple(box) if box is not None else None for box in self.table.column("box").to_pylist()]

    def rows_of(self, split: Split) -> np.ndarray:
        """Row numbers (int64, ascending) of a split; empty when it has none."""
        return np.flatnonzero(self.splits == split)

    def select(self, rows: Sequence[int] | np.ndarray) -> Catalog:
        """The same catalog with only these rows, in this order; classes keep their labels."""
        table = self.table.take(pa.array(np.asarray(rows, dtype=np.int64)))
        return Catalog(table, self.root, self.class_names, self.class_ids, self.name, self.container, self.remark)

    def of_classes(self, labels: Sequence[int] | np.ndarray) -> Catalog:
        """The same catalog with only the images of these classes, in the same order, relabelled 0, 1, ... as given.

        Raises:
            ValueError: a label that no class has, or one that is given twice.
        """
        chosen = [int(label) for label in labels]
        if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(len(self.class_names))):
            raise ValueError(f"{chosen} are not different labels of {len(self.class_names)} classes")
        new = np.full(len(self.class_names) + 1, UNLABELLED, np.int32)  # the last is for those without a label
        new[chosen] = np.arange(len(chosen))
        kept = self.select(np.flatnonzero(new[self.labels] >= 0))
        place = kept.table.schema.get_field_index("label")
        table = kept.table.set_column(place, SCHEMA.field("label"), pa.array(new[kept.labels], pa.int32()))
        return replace(
            kept,
            table=table,
            class_names=tuple(self.class_names[label] for label in chosen),
            class_ids=tuple(self.class_ids[label] for label in chosen),
        )

    def read_bytes(self, row: int) -> bytes:
        """The encoded bytes of one image.

        Raises:
            InputError: the file or zip member is missing, cannot be read, or is larger than any picture.
        """
        path = self.paths[row]
        try:
            if self.container == "zip":
                if (size := self._zip.getinfo(path).file_size) > MAX_BYTES:
                    raise InputError(f"{path}: {size / 2**20:,.0f} MiB are too many for a picture.", "Remove it.")
                return self._zip.read(path)
            data = read_regular(self.root / path, MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise InputError(
                    f"{path}: more than {MAX_BYTES // 2**20} MiB are too many for a picture.", "Remove it."
                )
            return data
        except (OSError, KeyError, RuntimeError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(
                f"{self.root}: cannot read '{path}' ({error}).", f"Run 'lookalike data check {self.root}'."
            ) from None

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.root)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the rows, the classes and each file's size and modification time.

        It is cheap (a stat per file, no reading) and changes when an image is added, removed, relabelled or rewritten.
        """
        digest = hashlib.sha256()
        digest.update(json.dumps([self.name, self.class_names, self.class_ids, self.remark]).encode())
        for column in ("id", "path", "split"):
            digest.update("\0".join(self.table.column(column).to_pylist()).encode())
        digest.update(self.labels.tobytes())
        digest.update(json.dumps(self.table.column("box").to_pylist()).encode())
        digest.update(self._stamps().tobytes())
        return digest.hexdigest()

    def _stamps(self) -> np.ndarray:
        """Size and time of each source file, shape (N, 2) int64; CRC and size for members of a zip, 0 where missing."""
        stamps = np.zeros((len(self), 2), dtype=np.int64)
        for row, path in enumerate(self.paths):
            with suppress(OSError, KeyError):
                if self.container == "zip":
                    member = self._zip.getinfo(path)
                    stamps[row] = member.file_size, member.CRC
                else:
                    stat = (self.root / path).stat()
                    stamps[row] = stat.st_size, modified_ns(stat)
        return stamps

    def to_parquet(self, path: Path) -> None:
        """Write the table with its metadata; `from_parquet` reads it back equal."""
        about = {
            "root": str(self.root),
            "class_names": self.class_names,
            "class_ids": self.class_ids,
            "name": self.name,
            "container": self.container,
            "remark": self.remark,
        }
        table = self.table.replace_schema_metadata({"lookalike": json.dumps(about)})
        with atomic_file(path) as partial:
            pq.write_table(table, partial)

    @classmethod
    def from_parquet(cls, path: Path) -> Catalog:
        """Read what `to_parquet` wrote.

        Raises:
            InputError: the file is not a Parquet file or was not written by `to_parquet`.
        """
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[b"lookalike"])
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: not a catalog ({error}).", "Write it with Catalog.to_parquet.") from None
        return cls(
            table.replace_schema_metadata(None).cast(SCHEMA),
            Path(about["root"]),
            tuple(about["class_names"]),
            tuple(about["class_ids"]),
            about["name"],
            about["container"],
            about["remark"],
        )
