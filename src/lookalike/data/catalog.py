"""The catalog: the table of the images of a data set, with labels and splits.

A catalog is an immutable view of an Arrow table with the columns

    id     string   unique in the catalog, stable across machines (usually the path relative to the root)
    path   string   relative to `root`; with `container="zip"` the name of the member in the zip file that `root` is
    label  int32    index into `class_names`, -1 if unknown
    split  string   "train", "val" or "test"
    box    list<int32>[4]  left, top, right, bottom in pixels; null if unknown

and the metadata below.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
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
from PIL import Image

from lookalike.data.scan import modified_ns, read_regular
from lookalike.errors import InputError
from lookalike.files import atomic_file
from lookalike.image import MAX_BYTES, decode

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
UNLABELLED = -1
SHOWN_IMAGES = 8  # of a catalog in a notebook
THUMBNAIL = 96  # pixels of each

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
    """One image, as readers pass it to `Catalog.from_rows`."""

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
        class_names: readable names, in label order.
        class_ids: the data set's own names (such as WordNet ids or folder names), in label order.
        name: the name of the data set in reports and receipts.
        container: `"folder"` or `"zip"`.
        remark: must be stated with every result on this copy, such as "half: 8,144 of the 16,185 images"; or "".
        passed_over: numbers of other files in the folder or zip, by kind (see `lookalike.data.scan`).
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
        """Build a catalog from rows.

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
        """Labels, (N,) int32; -1 if unknown."""
        return self.table.column("label").to_numpy().astype(np.int32)  # type: ignore[no-any-return]

    @cached_property
    def splits(self) -> np.ndarray:
        """Splits, (N,) str."""
        return np.asarray(self.table.column("split").to_pylist())

    @cached_property
    def boxes(self) -> list[tuple[int, int, int, int] | None]:
        """Left, top, right, bottom in pixels of each image; None without a box."""
        return [tuple(box) if box is not None else None for box in self.table.column("box").to_pylist()]

    def rows_of(self, split: Split) -> np.ndarray:
        """Return the row numbers of a split, ascending int64."""
        return np.flatnonzero(self.splits == split)

    def select(self, rows: Sequence[int] | np.ndarray) -> Catalog:
        """Return a catalog of these rows, in this order. Classes keep their labels."""
        table = self.table.take(pa.array(np.asarray(rows, dtype=np.int64)))
        return Catalog(table, self.root, self.class_names, self.class_ids, self.name, self.container, self.remark)

    def of_classes(self, labels: Sequence[int] | np.ndarray) -> Catalog:
        """Return a catalog of the images of these classes, in the same order, relabelled 0, 1, ... in the order given.

        Raises:
            ValueError: a label that no class has, or one that is given twice.
        """
        chosen = [int(label) for label in labels]
        if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(len(self.class_names))):
            raise ValueError(f"{chosen} are not different labels of {len(self.class_names)} classes")
        new = np.full(len(self.class_names) + 1, UNLABELLED, np.int32)  # the last entry is for images without a label
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
        """Read the file of one image.

        Raises:
            InputError: the file or zip member is missing, cannot be read, or is larger than `MAX_BYTES`.
        """
        path = self.paths[row]
        try:
            if self.container == "zip":
                if (size := self._zip.getinfo(path).file_size) > MAX_BYTES:
                    raise InputError(f"{path}: {size / 2**20:,.0f} MiB are too many for an image.", "Remove it.")
                return self._zip.read(path)
            data = read_regular(self.root / path, MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise InputError(f"{path}: more than {MAX_BYTES // 2**20} MiB are too many for an image.", "Remove it.")
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
        """SHA-256 (hex) of the rows, the classes and each file's size and modification time.

        It changes when an image is added, removed, relabelled or rewritten. No file is read.
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
        """Size and time of each file, (N, 2) int64; size and CRC in a zip; 0 for missing files."""
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

    def _repr_html_(self) -> str:
        """Show the counts and a few images in a notebook."""
        counts = ", ".join(f"{len(self.rows_of(s)):,} {s}" for s in SPLITS if len(self.rows_of(s)))
        tiles = []
        for row in np.linspace(0, len(self) - 1, min(len(self), SHOWN_IMAGES)).astype(int).tolist():
            label = int(self.labels[row])
            caption = self.class_names[label] if label != UNLABELLED else "no label"
            try:
                picture = Image.fromarray(decode(self.read_bytes(row), THUMBNAIL, name=self.paths[row]))
            except InputError:
                continue
            file = io.BytesIO()
            picture.save(file, "PNG")
            uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            tiles.append(
                f'<figure style="display:inline-block;margin:4px"><img src="{uri}" alt="{html.escape(caption)}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
        remark = f"<br>{html.escape(self.remark)}" if self.remark else ""
        title = f"<b>{html.escape(self.name)}</b>: {len(self.class_names):,} classes; {counts} images{remark}"
        return f"<div>{title}<br>{''.join(tiles)}</div>"

    def to_parquet(self, path: Path) -> None:
        """Write the table with its metadata, for `from_parquet`."""
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
